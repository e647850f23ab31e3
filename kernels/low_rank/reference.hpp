// Specification of the low-rank products, in double, on plain matrices.
#pragma once

#include <cstdint>

namespace flywheel::inline v0::kernels::reference {

/// scale * sum_k a[k] x[k]
inline double project(const float* a, const float* x, double scale, std::int64_t k) {
  double sum = 0;
  for (std::int64_t i = 0; i < k; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(x[i]);
  return scale * sum;
}

/// y + sum_j b[j] u[j], b being one row of B
inline double expand(double y, const float* b, const float* u, std::int64_t rank) {
  for (std::int64_t j = 0; j < rank; ++j) y += static_cast<double>(b[j]) * static_cast<double>(u[j]);
  return y;
}

}  // namespace flywheel::inline v0::kernels::reference
