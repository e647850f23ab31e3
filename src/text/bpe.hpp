// Byte-level BPE (GPT-2 and its descendants).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "codec.hpp"
#include "flywheel/io/metadata.hpp"
#include "merge.hpp"
#include "pretokenizer.hpp"
#include "vocabulary.hpp"

namespace flywheel::inline v0::text {

/// Text is cut into words, a word's bytes are its first symbols, and neighbours merge by the rank of their pair.
class bpe_codec final : public codec {
 public:
  /// Reads `tokenizer.ggml.merges`. `v` must outlive the codec. Errors: not_found, malformed, internal, out_of_memory.
  [[nodiscard]] static result<std::unique_ptr<codec>> make(const io::metadata& meta, const vocabulary& v,
                                                           const pre_rule& rule, token_id unknown);

  [[nodiscard]] result<void> encode(const std::vector<segment>& segments, std::size_t text_bytes,
                                    std::vector<token_id>& out) const override;
  void render(token_id id, std::string& out) const override;

 private:
  // A merge in eight bytes, so that as much of the table as possible lies in the caches: the left symbol in bits 43-63,
  // the right one in bits 22-42, the rank in bits 0-21.
  static constexpr std::uint32_t most_symbols = 1U << 21, most_merges = (1U << 22) - 1;
  static constexpr std::uint64_t empty_slot = ~std::uint64_t{0};
  [[nodiscard]] static constexpr std::uint64_t key_of(std::uint32_t left, std::uint32_t right) noexcept {
    return std::uint64_t{left} << 43 | std::uint64_t{right} << 22;
  }

  explicit bpe_codec(const vocabulary& v, const pre_rule& rule, token_id unknown) noexcept
      : vocabulary_(v), unknown_(unknown), whole_words_(rule.whole_words) {}

  result<void> read_merges(const io::metadata& meta);
  void encode_word(std::string_view word, merger& work, std::vector<token_id>& out) const;
  void spell_out(std::uint32_t id, std::vector<token_id>& out) const;
  [[nodiscard]] token_id find_word(std::string_view word) const noexcept;
  [[nodiscard]] std::uint32_t rank_of(std::uint32_t left, std::uint32_t right) const noexcept;
  [[nodiscard]] std::size_t home(std::uint64_t key) const noexcept;
  [[nodiscard]] std::size_t slot_of(std::uint64_t key) const noexcept;

  const vocabulary& vocabulary_;
  pretokenizer pretokenizer_;
  token_id unknown_;
  bool whole_words_;
  bool compose_ = false;  // Unicode NFC first

  std::vector<std::uint64_t> pairs_;   // open addressing, at most three quarters full
  std::vector<std::uint32_t> merged_;  // by rank: the symbol that the merge makes
  std::uint64_t seed_ = 0;
  // A symbol's id is its token's; symbols that are no token of their own come after the vocabulary.
  std::array<std::uint32_t, 256> byte_symbol_{};
  std::vector<std::string> extra_;  // the bytes of symbol vocabulary_.size() + i
};

}  // namespace flywheel::inline v0::text
