// How attention is cut into tasks: blocks of consecutive tokens of one head of one sequence.
#pragma once

#include <algorithm>
#include <cstdint>

#include "src/device/cpu/program.hpp"

namespace flywheel::inline v0::device {

struct head_block {
  const sequence_slice* slice = nullptr;
  std::int64_t first_row = 0;       ///< Of the slice in the chunk.
  std::int64_t head = 0;            ///< Of keys and values.
  std::int64_t begin = 0, end = 0;  ///< Tokens of the slice.
};

/// The blocks of a chunk in order of sequences, then heads: keys and values of one head at a time stay in the caches.
struct head_blocks {
  std::int64_t heads = 0, block_tokens = 0;

  [[nodiscard]] std::int64_t of(const sequence_slice& s) const noexcept {
    return (s.n_tokens + block_tokens - 1) / block_tokens;
  }
  [[nodiscard]] std::int64_t count(const run_state& s) const noexcept {
    std::int64_t n = 0;
    for (const sequence_slice& slice : s.bound->sequences) n += of(slice) * heads;
    return n;
  }
  /// Block `index` of count().
  [[nodiscard]] head_block at(const run_state& s, std::int64_t index) const noexcept {
    std::int64_t row = 0;
    const sequence_slice* slice = s.bound->sequences.data();
    for (; index >= of(*slice) * heads; ++slice) {
      index -= of(*slice) * heads;
      row += slice->n_tokens;
    }
    const std::int64_t begin = index % of(*slice) * block_tokens;
    return {slice, row, index / of(*slice), begin, std::min(slice->n_tokens, begin + block_tokens)};
  }
};

}  // namespace flywheel::inline v0::device
