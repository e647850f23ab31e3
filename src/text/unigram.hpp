// SentencePiece unigram (T5, XLM-RoBERTa and their descendants).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "charsmap.hpp"
#include "codec.hpp"
#include "sentencepiece.hpp"
#include "trie.hpp"
#include "vocabulary.hpp"

namespace flywheel::inline v0::text {

struct unigram_options {
  bool space_prefix = true;   ///< Text is seen with a space in front.
  bool merge_spaces = false;  ///< Runs of spaces count as one, those at the ends not at all.
  token_id unknown = -1;
};

/// The text is cut into the tokens with the greatest sum of scores (Viterbi).
class unigram_codec final : public codec {
 public:
  /// `v` must outlive the codec; its scores are finite.
  unigram_codec(const vocabulary& v, charsmap map, const unigram_options& options);

  [[nodiscard]] result<void> encode(const std::vector<segment>& segments, std::size_t text_bytes,
                                    std::vector<token_id>& out) const override;
  void render(token_id id, std::string& out) const override { render_piece(vocabulary_, id, out); }

 private:
  struct step {
    double score;        // of the best way to here
    std::uint32_t from;  // where its last token began
    token_id id;         // that token; -1: a character that no token covers
  };
  void encode_escaped(std::string_view text, std::vector<step>& best, std::vector<token_id>& out) const;

  const vocabulary& vocabulary_;
  charsmap map_;
  unigram_options options_;
  word_cutter words_;
  byte_fallback fallback_;
  trie pieces_;
  double unknown_score_ = 0;
};

}  // namespace flywheel::inline v0::text
