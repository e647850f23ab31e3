// Rewrites: functions graph -> graph that keep the results and save work or barriers. Each works on any architecture.
#pragma once

#include "flywheel/core/config.hpp"
#include "flywheel/graph/graph.hpp"

namespace flywheel::inline v0::graph {

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
