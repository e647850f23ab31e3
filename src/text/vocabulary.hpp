// The tokens of a vocabulary: spelling, kind and score by id, and id by spelling.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/result.hpp"
#include "flywheel/io/metadata.hpp"
#include "flywheel/text/tokenizer.hpp"

namespace flywheel::inline v0::text {

class vocabulary {
 public:
  /// Reads tokens, scores and token types. Errors: not_found, malformed (lengths differ, wrong types, duplicates).
  [[nodiscard]] static result<vocabulary> read(const io::metadata& meta);

  [[nodiscard]] std::int32_t size() const noexcept { return static_cast<std::int32_t>(kinds_.size()); }
  [[nodiscard]] bool contains(token_id id) const noexcept { return id >= 0 && id < size(); }
  // The rest wants an id in range.
  [[nodiscard]] std::string_view piece(token_id id) const noexcept {
    const auto i = static_cast<std::size_t>(id);
    return {bytes_.data() + offsets_[i], offsets_[i + 1] - offsets_[i]};
  }
  [[nodiscard]] token_kind kind(token_id id) const noexcept { return kinds_[static_cast<std::size_t>(id)]; }
  [[nodiscard]] float score(token_id id) const noexcept {
    return scores_.empty() ? 0.0F : scores_[static_cast<std::size_t>(id)];
  }
  [[nodiscard]] bool has_scores() const noexcept { return !scores_.empty(); }

  /// -1 when no token is spelled so.
  [[nodiscard]] token_id find(std::string_view piece) const noexcept;
  /// find() for up to batch_size spellings at once, several times faster than one by one.
  static constexpr std::size_t batch_size = 64;
  void find_batch(std::span<const std::string_view> pieces, token_id* ids) const noexcept;
  /// Length in bytes of the longest spelling.
  [[nodiscard]] std::size_t longest() const noexcept { return longest_; }

  /// The token that stands for a byte: kind byte, spelled "<0x0A>"; -1 when there is none.
  [[nodiscard]] token_id byte_token(unsigned char byte) const noexcept;

 private:
  struct slot {
    std::uint32_t hash = 0;
    token_id id = -1;
  };
  result<void> index();

  std::string bytes_;                   // all spellings, one after the other
  std::vector<std::uint32_t> offsets_;  // [size + 1]
  std::vector<token_kind> kinds_;
  std::vector<float> scores_;
  std::vector<slot> slots_;  // open addressing, at most half full
  std::uint64_t seed_ = 0;
  std::size_t longest_ = 0;
};

/// The byte that "<0x0A>" names; -1 for any other spelling.
[[nodiscard]] int parse_byte_piece(std::string_view piece) noexcept;

}  // namespace flywheel::inline v0::text
