// SentencePiece BPE (Llama 2, Mistral, Gemma, Phi-3).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "codec.hpp"
#include "merge.hpp"
#include "sentencepiece.hpp"
#include "vocabulary.hpp"

namespace flywheel::inline v0::text {

/// Characters are the first symbols; two neighbours may merge when their text is a token, the best score first.
class spm_codec final : public codec {
 public:
  /// `v` must outlive the codec. `space_prefix`: text is seen with a space in front, at its start and after a token
  /// that was spelled out.
  spm_codec(const vocabulary& v, bool space_prefix, token_id unknown);

  [[nodiscard]] result<void> encode(const std::vector<segment>& segments, std::size_t text_bytes,
                                    std::vector<token_id>& out) const override;
  void render(token_id id, std::string& out) const override { render_piece(vocabulary_, id, out); }

 private:
  void encode_escaped(std::string_view text, merger& work, std::vector<token_id>& out) const;

  const vocabulary& vocabulary_;
  bool space_prefix_;
  word_cutter words_;
  byte_fallback fallback_;
  std::vector<std::uint32_t> ranks_;  // by id: 0 is the best score; no_merge for tokens that text does not turn into
};

}  // namespace flywheel::inline v0::text
