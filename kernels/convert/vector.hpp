// Conversions over `simd` vectors. Include after one simd_*.hpp.
#pragma once

#include "kernels/convert/convert.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class S>
struct conversion {
  static void f32_to_f16(const float* x, std::int64_t n, std::uint16_t* out) {
    std::int64_t i = 0;
    for (; i + S::width <= n; i += S::width) S::store_f16(out + i, S::load(x + i));
    if (i < n) S::store_f16_part(out + i, n - i, S::load_part(x + i, n - i));
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
