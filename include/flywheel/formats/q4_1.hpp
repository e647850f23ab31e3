// Q4_1: 32 values in 20 bytes, 5 bits per weight; scale and minimum, for blocks that do not centre on zero.
//   x[j] = d * q + m,  q in [0, 15]
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::q4_1> {
  struct block {
    std::uint8_t d[2];    ///< f16: the scale, (max - min) / 15
    std::uint8_t m[2];    ///< f16: the minimum
    std::uint8_t qs[16];  ///< byte j: low nibble is value j, high nibble value j + 16
  };
  static constexpr int elements = 32;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    const float m = load_f16(b.m);
    for (int j = 0; j < 16; ++j) {
      out[j] = d * static_cast<float>(b.qs[j] & 15) + m;
      out[j + 16] = d * static_cast<float>(b.qs[j] >> 4) + m;
    }
  }

  static void encode(const float* x, block& b) noexcept {
    const auto [low, high] = std::minmax_element(x, x + 32);
    const float m = *low;
    const float d = (*high - m) / 15.0F;
    const float id = inverse(d);
    store_f16(b.d, d);
    store_f16(b.m, m);
    for (int j = 0; j < 16; ++j)
      b.qs[j] =
          static_cast<std::uint8_t>(level((x[j] - m) * id + 0.5F, 15) | (level((x[j + 16] - m) * id + 0.5F, 15) << 4));
  }
};

}  // namespace flywheel::inline v0::formats
