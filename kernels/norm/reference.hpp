// Specification of the norms, in double.
#pragma once

#include <cmath>
#include <cstdint>

namespace flywheel::inline v0::kernels::reference {

/// y[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]
inline void rms_norm(const float* x, const float* weight, double eps, std::int64_t n, double* y) {
  double squares = 0;
  for (std::int64_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const double root = std::sqrt(squares / static_cast<double>(n) + eps);
  for (std::int64_t i = 0; i < n; ++i)
    y[i] = static_cast<double>(x[i]) / root * (weight ? static_cast<double>(weight[i]) : 1.0);
}

/// y[i] = (x[i] - mean) / sqrt(var + eps) * weight[i] + bias[i]
inline void layer_norm(const float* x, const float* weight, const float* bias, double eps, std::int64_t n, double* y) {
  double mean = 0;
  for (std::int64_t i = 0; i < n; ++i) mean += static_cast<double>(x[i]) / static_cast<double>(n);
  double variance = 0;
  for (std::int64_t i = 0; i < n; ++i)
    variance += (static_cast<double>(x[i]) - mean) * (static_cast<double>(x[i]) - mean) / static_cast<double>(n);
  for (std::int64_t i = 0; i < n; ++i)
    y[i] = (static_cast<double>(x[i]) - mean) / std::sqrt(variance + eps) *
               (weight ? static_cast<double>(weight[i]) : 1.0) +
           (bias ? static_cast<double>(bias[i]) : 0.0);
}

}  // namespace flywheel::inline v0::kernels::reference
