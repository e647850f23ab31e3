// How much there is to compute.
#pragma once

#include <cstdint>

#include "flywheel/core/config.hpp"
#include "flywheel/graph/graph.hpp"

namespace flywheel::inline v0::graph {

/// Multiply-adds with weights per row of the node's input: products of linear, moe_ffn (chosen experts only) and the
/// convolution and recurrence of delta_net. 0 for other operations, attention's products with the cache among them.
[[nodiscard]] FLYWHEEL_API std::int64_t multiply_adds(const graph& g, const node& n) noexcept;

}  // namespace flywheel::inline v0::graph
