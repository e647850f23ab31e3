// Rotary position embedding of one token (Su et al. 2021): each pair (a, b) of a head becomes
// (a cos - b sin, a sin + b cos) with the pair's own angle.
#pragma once

#include <cstdint>

#include "flywheel/core/ops.hpp"

namespace flywheel::inline v0::kernels {

using flywheel::rope_pairs;

/// In place on x [n_heads, head_dim] (heads `head_stride` floats apart); cos, sin: [n_rot / 2] of this token's
/// position, any attention factor already multiplied in. Elements from n_rot on stay.
using rope_fn = void (*)(float* x, std::int64_t n_heads, std::int64_t head_stride, std::int64_t n_rot, const float* cos,
                         const float* sin, rope_pairs pairs);

}  // namespace flywheel::inline v0::kernels
