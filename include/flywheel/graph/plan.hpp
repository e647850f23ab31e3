// Where every intermediate lies in one arena, so that running a graph allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/graph/graph.hpp"

namespace flywheel::inline v0::graph {

struct memory_plan {
  static constexpr std::size_t none = ~std::size_t{0};
  std::vector<std::size_t> offsets;  ///< Per value: bytes from the arena's start; none for weights, ids and results.
  std::size_t arena_bytes = 0;
  std::int64_t max_tokens = 0;  ///< Rows the plan holds; smaller chunks use the same offsets.
  std::int64_t max_outputs = 0;
};

/// Places values of [max rows, cols] by their lifetimes (from the producer to the last use), 64-byte aligned, largest
/// first, each at the lowest offset where nothing alive at the same time lies. Graph results are not placed: the caller
/// gives their memory. A linear or moe_ffn with a residual writes over it when that was its last use.
/// Error: invalid_argument for row counts below 1 or too large.
[[nodiscard]] FLYWHEEL_API result<memory_plan> plan_memory(const graph& g, std::int64_t max_tokens,
                                                           std::int64_t max_outputs);

}  // namespace flywheel::inline v0::graph
