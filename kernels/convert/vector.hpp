// Conversions over `simd` vectors. Include after one simd_*.hpp.
#pragma once

#include "kernels/convert/convert.hpp"
#include "kernels/q8_codes.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class S>
struct conversion {
  static void f32_to_f16(const float* x, std::int64_t n, std::uint16_t* out) {
    std::int64_t i = 0;
    for (; i + S::width <= n; i += S::width) S::store_f16(out + i, S::load(x + i));
    if (i < n) S::store_f16_part(out + i, n - i, S::load_part(x + i, n - i));
  }
  static void f32_to_q8(const float* x, std::int64_t n, std::int64_t group, std::int8_t* codes, float* scales) {
    for (; n > 0; n -= group, x += group, codes += group, ++scales) {
      const std::int64_t count = n < group ? n : group, whole = count / 32 * 32;
      alignas(64) float rest[32] = {};
      for (std::int64_t i = whole; i < count; ++i) rest[i - whole] = x[i];
      std::uint32_t peak = peak_of<S>(rest);
      for (std::int64_t i = 0; i < whole; i += 32) {
        const std::uint32_t own = peak_of<S>(x + i);
        peak = own > peak ? own : peak;
      }
      const q8_scale s = q8_scale_of(peak);
      *scales = s.scale;
      std::int32_t sum;
      for (std::int64_t i = 0; i < whole; i += 32) round_codes<S, 1>(x + i, s.inverse, codes + i, &sum);
      if (whole == count) continue;
      alignas(64) std::int8_t last[32];
      round_codes<S, 1>(rest, s.inverse, last, &sum);
      for (std::int64_t i = whole; i < count; ++i) codes[i] = last[i - whole];
    }
  }
  static void f16_to_f32(const std::byte* row, std::int64_t n, float* out) {
    std::int64_t i = 0;
    for (; i + S::width <= n; i += S::width) S::store(out + i, S::load_f16(row + 2 * i));
    if (i < n) S::store_part(out + i, n - i, S::load_f16_part(row + 2 * i, n - i));
  }
  static void bf16_to_f32(const std::byte* row, std::int64_t n, float* out) {
    std::int64_t i = 0;
    for (; i + S::width <= n; i += S::width) S::store(out + i, S::load_bf16(row + 2 * i));
    for (; i < n; ++i) {
      std::uint16_t half;  // rows of a file need not be aligned
      __builtin_memcpy(&half, row + 2 * i, 2);
      out[i] = kernels::bf16_to_f32(half);
    }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
