// Rewrites: functions graph -> graph that keep the results and save work or barriers. Each works on any architecture.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/graph/graph.hpp"

namespace flywheel::inline v0::graph {

/// A place where activations go into weights.
struct tap_point {
  std::vector<std::string> weights;  ///< Tensors that multiply these activations: attn_q, attn_k and attn_v of a layer.
  std::int64_t cols = 0;             ///< Elements of a row: the weights' columns.
  std::int64_t n_experts = 0;        ///< 0: no experts; each expert sees rows of its own.
  friend bool operator==(const tap_point&, const tap_point&) = default;
};

/// Appends the points of a graph as its author wrote it (before the rewrites below) that `points` lacks, in the order
/// of the graph: the inputs of linear, one for all that share it, and of moe_ffn's experts. Weights that are used twice
/// in the same company are one point.
FLYWHEEL_API void find_tap_points(const graph& g, std::vector<tap_point>& points);
/// Puts a tap in front of every linear, and tells every moe_ffn to show its experts' rows, where wanted[i] for the
/// point i. To be done before the rewrites below, which then leave these activations in memory. Results stay the same.
[[nodiscard]] FLYWHEEL_API graph insert_taps(graph g, std::span<const tap_point> points,
                                             const std::vector<bool>& wanted);

/// linear(x, w1), linear(x, w2), ... of one x become one linear with several weights (QKV, gate and up): x is prepared
/// once and the products share one barrier.
[[nodiscard]] FLYWHEEL_API graph group_linears(graph g);
/// glu over the two outputs of one linear becomes that linear with glu: gate and up never reach memory. After
/// group_linears.
[[nodiscard]] FLYWHEEL_API graph fuse_glu(graph g);
/// activate(linear(x)) stores activated products.
[[nodiscard]] FLYWHEEL_API graph fuse_activation(graph g);
/// add(r, linear(x)) and add(r, moe_ffn(x)) store the sum themselves.
[[nodiscard]] FLYWHEEL_API graph fuse_residual(graph g);
/// linear(rms_norm(x)) with no other use of the norm becomes linear with a norm: together with fuse_residual, neither
/// the residual addition nor the norm around it needs a pass or a barrier of its own.
[[nodiscard]] FLYWHEEL_API graph fuse_norm(graph g);
/// attention(rope(q), rope(k), v) becomes attention with rope.
[[nodiscard]] FLYWHEEL_API graph fuse_rope(graph g);
/// attention of q, k or v out of rms_norm by heads becomes attention with norms. After fuse_rope.
[[nodiscard]] FLYWHEEL_API graph fuse_head_norms(graph g);
/// Drops nodes and weights that nothing uses.
[[nodiscard]] FLYWHEEL_API graph remove_unused(graph g);
/// All of them in the right order.
[[nodiscard]] FLYWHEEL_API graph optimize(graph g);

}  // namespace flywheel::inline v0::graph
