// Specification of the rotary embedding, in double: (a, b) becomes (a cos - b sin, a sin + b cos).
#pragma once

#include <cstdint>

#include "kernels/rope/rope.hpp"

namespace flywheel::inline v0::kernels::reference {

/// One head; y: [n_rot].
inline void rope(const float* x, std::int64_t n_rot, const float* cos, const float* sin, rope_pairs pairs, double* y) {
  for (std::int64_t i = 0; i < n_rot / 2; ++i) {
    const std::int64_t first = pairs == rope_pairs::adjacent ? 2 * i : i;
    const std::int64_t second = pairs == rope_pairs::adjacent ? 2 * i + 1 : i + n_rot / 2;
    const double a = static_cast<double>(x[first]), b = static_cast<double>(x[second]);
    const double c = static_cast<double>(cos[i]), s = static_cast<double>(sin[i]);
    y[first] = a * c - b * s;
    y[second] = a * s + b * c;
  }
}

}  // namespace flywheel::inline v0::kernels::reference
