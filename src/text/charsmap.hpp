// SentencePiece's precompiled normalisation: a trie from prefixes of text to their replacements.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/result.hpp"

namespace flywheel::inline v0::text {

/// Immutable. Empty: text stays as it is. Untrusted: every index is checked when it is used.
class charsmap {
 public:
  charsmap() = default;
  /// `blob`: a 32-bit little-endian length, a double array of so many bytes (Darts-clone's layout), then the
  /// replacements, each ending with a zero byte. Error: malformed.
  [[nodiscard]] static result<charsmap> parse(std::string_view blob);

  [[nodiscard]] bool empty() const noexcept { return units_.empty(); }
  /// Appends the normal form of `text`: the longest known prefix is replaced, anything else stays, invalid bytes become
  /// U+FFFD.
  void normalize(std::string_view text, std::string& out) const;

 private:
  struct found {
    std::size_t length = 0;  // 0: no prefix is known
    std::string_view replacement;
  };
  [[nodiscard]] found longest_prefix(std::string_view text) const noexcept;

  std::vector<std::uint32_t> units_;
  std::string replacements_;
};

}  // namespace flywheel::inline v0::text
