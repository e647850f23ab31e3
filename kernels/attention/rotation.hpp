// What 4-bit pages hold is rotated first: each head times a Hadamard matrix, H x / sqrt(n), H[i][j] = (-1)^popcount(i &
// j) (fast Walsh-Hadamard transform), over blocks of n numbers, the largest power of two up to 256 that divides
// head_dim. It spreads the few large numbers of a head over all of them, so that 4 bits lose less. Scores do not change
// when queries are rotated like keys; the rotation is its own inverse, which turns weighted sums of values back.
// (Ashkboos et al. 2024)
//
// One order of additions and no fused operations: the same bits on every ISA.
#pragma once

#include <cstdint>

#include "flywheel/core/dtype.hpp"

namespace flywheel::inline v0::kernels {

// Static functions: a kernel's object file must not share symbols with another's.

static constexpr bool is_rotated_kv(dtype type) noexcept { return type == dtype::q4_0; }

static constexpr std::int64_t most_rotated = 256;
static constexpr std::int64_t kv_rotation_block(std::int64_t head_dim) noexcept {
  const std::int64_t power = head_dim & -head_dim;
  return power < most_rotated ? power : most_rotated;
}

/// In place.
[[maybe_unused]] static inline void rotate_head(float* x, std::int64_t head_dim) noexcept {
  const std::int64_t n = kv_rotation_block(head_dim);
  for (std::int64_t stride = 1; stride < n; stride *= 2)
    for (std::int64_t first = 0; first < head_dim; first += 2 * stride)
      for (std::int64_t i = first; i < first + stride; ++i) {
        const float a = x[i], b = x[i + stride];
        x[i] = a + b;
        x[i + stride] = a - b;
      }
  float scale = 1;
  std::int64_t m = n;
  for (; m >= 4; m /= 4) scale *= 0.5F;
  if (m == 2) scale *= 0.70710678F;
  for (std::int64_t i = 0; i < head_dim; ++i) x[i] *= scale;
}

}  // namespace flywheel::inline v0::kernels
