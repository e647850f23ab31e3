// Root-mean-square norm of one row:  y[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]     (Zhang & Sennrich 2019)
#pragma once

#include <cstdint>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::kernels {

/// x, weight, y: [n]; y may be x. weight null: all ones.
using rms_norm_fn = void (*)(const float* x, const float* weight, float eps, std::int64_t n, float* y);
/// sum = x + r (stored; may alias x or r), y = rms_norm(sum).
using add_rms_norm_fn = void (*)(const float* x, const float* r, const float* weight, float eps, std::int64_t n,
                                 float* sum, float* y);
/// Layer norm of one row: y = (x - mean) / sqrt(var + eps) * weight + bias; bias may be null.
using layer_norm_fn = void (*)(const float* x, const float* weight, const float* bias, float eps, std::int64_t n,
                               float* y);

}  // namespace flywheel::inline v0::kernels
