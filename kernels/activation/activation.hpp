// Element-wise work on rows of floats.
#pragma once

#include <cstdint>

#include "flywheel/core/ops.hpp"

namespace flywheel::inline v0::kernels {

using flywheel::activation;

/// y[i] = act(gate[i]) * up[i]; y may be gate or up. silu(x) = x / (1 + exp(-x)) (Shazeer 2020, GLU variants).
/// clamped_swish: act(gate[i]) * (clamp(up[i], -7, 7) + 1).
using glu_fn = void (*)(activation kind, const float* gate, const float* up, std::int64_t n, float* y);
/// y[i] = act(x[i]); y may be x.
using activate_fn = void (*)(activation kind, const float* x, std::int64_t n, float* y);
/// y[i] = a[i] + b[i]; y may be a or b.
using add_fn = void (*)(const float* a, const float* b, std::int64_t n, float* y);
/// y[i] += s * x[i]
using scaled_add_fn = void (*)(const float* x, float s, std::int64_t n, float* y);
/// y[i] = s * x[i]; y may be x.
using scale_fn = void (*)(const float* x, float s, std::int64_t n, float* y);
/// y[i] = cap * tanh(x[i] / cap); y may be x.
using softcap_fn = void (*)(const float* x, float cap, std::int64_t n, float* y);

}  // namespace flywheel::inline v0::kernels
