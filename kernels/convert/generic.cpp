#include <cstring>

#include "kernels/declare.hpp"
#include "kernels/q8_codes.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <float (*One)(std::uint16_t)>
void halves_to_f32(const std::byte* row, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint16_t half;  // rows of a file need not be aligned
    std::memcpy(&half, row + 2 * i, 2);
    out[i] = One(half);
  }
}

}  // namespace

void f32_to_f16_generic(const float* x, std::int64_t n, std::uint16_t* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = f32_to_f16_one(x[i]);
}

void f32_to_q8_generic(const float* x, std::int64_t n, std::int64_t group, std::int8_t* codes, float* scales) {
  for (; n > 0; n -= group, x += group, codes += group, ++scales) {
    const std::int64_t count = n < group ? n : group;
    std::uint32_t peak = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint32_t bits = bits_as<std::uint32_t>(x[i]) & 0x7fffffffu;
      peak = bits > peak ? bits : peak;
    }
    const q8_scale s = q8_scale_of(peak);
    *scales = s.scale;
    for (std::int64_t i = 0; i < count; ++i)
      codes[i] = static_cast<std::int8_t>(s.inverse == 0
                                              ? 0
                                              : bits_as<std::int32_t>(__builtin_fmaf(x[i], s.inverse, round_magic)) -
                                                    bits_as<std::int32_t>(round_magic));
  }
}

void to_f32_f32_generic(const std::byte* row, std::int64_t n, float* out) {
  std::memcpy(out, row, static_cast<std::size_t>(n) * sizeof(float));
}
void to_f32_f16_generic(const std::byte* row, std::int64_t n, float* out) { halves_to_f32<f16_to_f32>(row, n, out); }
void to_f32_bf16_generic(const std::byte* row, std::int64_t n, float* out) { halves_to_f32<bf16_to_f32>(row, n, out); }

}  // namespace flywheel::inline v0::kernels
