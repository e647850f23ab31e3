// What quantized pages hold is rotated first: each head times a Hadamard matrix, H x / sqrt(n), H[i][j] =
// (-1)^popcount(i & j) (fast Walsh-Hadamard transform), over blocks of n numbers, the largest power of two up to 256
// that divides head_dim. It spreads the few large numbers of a head over all of them, so that few bits lose less.
// Scores do not change when queries are rotated like keys; the rotation is its own inverse, which turns weighted sums
// of values back. (Ashkboos et al. 2024)
//
// One order of additions and no fused operations: the same bits on every ISA.
#pragma once

#include <cstdint>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::kernels {

// Static functions: a kernel's object file must not share symbols with another's.

static constexpr std::int64_t most_rotated = 256;
static constexpr std::int64_t kv_rotation_block(std::int64_t head_dim) noexcept {
  const std::int64_t power = head_dim & -head_dim;
  return power < most_rotated ? power : most_rotated;
}

#if defined(__AVX__)
static constexpr int rotation_lanes = 8;
#else
static constexpr int rotation_lanes = 4;
#endif
typedef float rotation_vector __attribute__((vector_size(4 * rotation_lanes)));

[[maybe_unused]] static inline rotation_vector load_rotated(const float* x) noexcept {
  rotation_vector v;
  __builtin_memcpy(&v, x, sizeof(v));
  return v;
}

/// The step between lanes i and i ^ Stride: sums in the lower ones, differences in the upper ones.
template <int Stride>
[[maybe_unused]] static inline rotation_vector rotate_lanes(rotation_vector x) noexcept {
  constexpr auto sign = [](int lane) { return (lane & Stride) != 0 ? -1.0F : 1.0F; };
#if defined(__AVX__)
  const rotation_vector partner = __builtin_shufflevector(x, x, 0 ^ Stride, 1 ^ Stride, 2 ^ Stride, 3 ^ Stride,
                                                          4 ^ Stride, 5 ^ Stride, 6 ^ Stride, 7 ^ Stride);
  return partner + rotation_vector{sign(0), sign(1), sign(2), sign(3), sign(4), sign(5), sign(6), sign(7)} * x;
#else
  const rotation_vector partner = __builtin_shufflevector(x, x, 0 ^ Stride, 1 ^ Stride, 2 ^ Stride, 3 ^ Stride);
  return partner + rotation_vector{sign(0), sign(1), sign(2), sign(3)} * x;
#endif
}

/// In place. head_dim is a multiple of 32. With vectors of its own, since compilers find none where a step is between
/// neighbours; every ISA has these.
[[maybe_unused]] static inline void rotate_head(float* x, std::int64_t head_dim) noexcept {
  const std::int64_t n = kv_rotation_block(head_dim);
  float scale = 1;
  std::int64_t m = n;
  for (; m >= 4; m /= 4) scale *= 0.5F;
  if (m == 2) scale *= 0.70710678F;
  for (std::int64_t i = 0; i < head_dim; i += rotation_lanes) {
    rotation_vector v = rotate_lanes<2>(rotate_lanes<1>(load_rotated(x + i)));
    if constexpr (rotation_lanes > 4) v = rotate_lanes<4>(v);
    __builtin_memcpy(x + i, &v, sizeof(v));
  }
  for (std::int64_t stride = rotation_lanes; stride < n; stride *= 2) {
    const float factor = 2 * stride < n ? 1 : scale;
    for (std::int64_t first = 0; first < head_dim; first += 2 * stride)
      for (std::int64_t i = first; i < first + stride; i += rotation_lanes) {
        const rotation_vector a = load_rotated(x + i), b = load_rotated(x + i + stride);
        const rotation_vector sum = (a + b) * factor, difference = (a - b) * factor;
        __builtin_memcpy(x + i, &sum, sizeof(sum));
        __builtin_memcpy(x + i + stride, &difference, sizeof(difference));
      }
  }
}

}  // namespace flywheel::inline v0::kernels
