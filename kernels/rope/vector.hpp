// Rotary embedding over `simd` vectors. Include after one simd_*.hpp.
#pragma once

#include "kernels/rope/rope.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class S>
void rotate(float* x, std::int64_t n_heads, std::int64_t head_stride, std::int64_t n_rot, const float* cos,
            const float* sin, rope_pairs pairs) {
  using V = typename S::floats;
  const std::int64_t half = n_rot / 2;
  const auto one = [](float& a, float& b, float c, float s) {
    const float first = __builtin_fmaf(a, c, -(b * s));
    b = __builtin_fmaf(b, c, a * s);
    a = first;
  };
  for (std::int64_t h = 0; h < n_heads; ++h, x += head_stride) {
    std::int64_t i = 0;
    if (pairs == rope_pairs::halves) {
      for (; i + S::width <= half; i += S::width) {
        const V a = S::load(x + i), b = S::load(x + half + i), c = S::load(cos + i), s = S::load(sin + i);
        S::store(x + i, S::fma(a, c, S::sub(S::zero(), S::mul(b, s))));
        S::store(x + half + i, S::fma(b, c, S::mul(a, s)));
      }
      for (; i < half; ++i) one(x[i], x[half + i], cos[i], sin[i]);
    } else {
      for (; i + S::width / 2 <= half; i += S::width / 2) {
        // (a c - b s, b c + a s) for neighbours a, b.
        const V ab = S::load(x + 2 * i);
        const V rotated = S::mul(S::swap_pairs(ab), S::load_twice(sin + i));
        S::store(x + 2 * i, S::fma_add_sub(ab, S::load_twice(cos + i), rotated));
      }
      for (; i < half; ++i) one(x[2 * i], x[2 * i + 1], cos[i], sin[i]);
    }
  }
}

}  // namespace
}  // namespace flywheel::inline v0::kernels
