// A set of byte strings with an id each, walked byte by byte: longest matches and all matches at a position.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "flywheel/text/tokenizer.hpp"

namespace flywheel::inline v0::text {

/// Immutable once built. A node's children lie side by side, sorted by byte.
class trie {
 public:
  /// Longer strings are left out: they bound what one step of a match may cost.
  static constexpr std::size_t max_length = 1024;

  trie() = default;
  /// Strings must outlive this call only; of equal ones the first counts; empty ones are left out.
  explicit trie(std::vector<std::pair<std::string_view, token_id>> entries);

  [[nodiscard]] bool empty() const noexcept { return nodes_.empty(); }

  /// A place in the trie. Starts at the root; after a failed step it is dead.
  class cursor {
   public:
    explicit cursor(const trie& t) noexcept : trie_(&t) {}
    /// Follows a byte; false when no string goes on like this.
    bool step(unsigned char byte) noexcept;
    /// The id of the string that ends here; -1 when none does.
    [[nodiscard]] token_id id() const noexcept { return trie_->nodes_[node_].id; }

   private:
    const trie* trie_;
    std::uint32_t node_ = 0;
  };

 private:
  friend class cursor;
  struct node {
    std::uint32_t first = 0;  // index of the first child
    std::uint16_t count = 0;  // number of children
    token_id id = -1;
  };
  std::vector<node> nodes_;                // [0] is the root
  std::vector<unsigned char> labels_;      // labels_[i]: the byte that leads to nodes_[i]
  std::array<std::uint32_t, 256> root_{};  // the root's child for each byte; 0: none
};

inline bool trie::cursor::step(unsigned char byte) noexcept {
  if (node_ == 0) {
    node_ = trie_->root_[byte];
    return node_ != 0;
  }
  const node& here = trie_->nodes_[node_];
  std::uint32_t low = here.first, high = here.first + here.count;
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (trie_->labels_[middle] < byte)
      low = middle + 1;
    else
      high = middle;
  }
  if (low == here.first + here.count || trie_->labels_[low] != byte) return false;
  node_ = low;
  return true;
}

}  // namespace flywheel::inline v0::text
