// Q5_0: 32 values in 22 bytes, 5.5 bits per weight; symmetric; Q4_0 with a fifth bit kept apart.
//   x[j] = d * (q - 16),  q in [0, 31]
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::q5_0> {
  struct block {
    std::uint8_t d[2];    ///< f16: the scale; negative when the value of largest magnitude is positive
    std::uint8_t qh[4];   ///< u32: bit j is the fifth bit of value j
    std::uint8_t qs[16];  ///< byte j: low nibble is value j, high nibble value j + 16
  };
  static constexpr int elements = 32;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    const std::uint32_t qh = load_u32(b.qh);
    for (int j = 0; j < 16; ++j) {
      const int low = (b.qs[j] & 15) | static_cast<int>(((qh >> j) & 1U) << 4);
      const int high = (b.qs[j] >> 4) | static_cast<int>(((qh >> (j + 16)) & 1U) << 4);
      out[j] = d * static_cast<float>(low - 16);
      out[j + 16] = d * static_cast<float>(high - 16);
    }
  }

  static void encode(const float* x, block& b) noexcept {
    const float d = signed_peak(x, 32) / -16.0F;
    const float id = inverse(d);
    std::uint32_t qh = 0;
    for (int j = 0; j < 16; ++j) {
      const std::uint8_t low = level(x[j] * id + 16.5F, 31);
      const std::uint8_t high = level(x[j + 16] * id + 16.5F, 31);
      b.qs[j] = static_cast<std::uint8_t>((low & 15) | ((high & 15) << 4));
      qh |= static_cast<std::uint32_t>(low >> 4) << j | static_cast<std::uint32_t>(high >> 4) << (j + 16);
    }
    store_f16(b.d, d);
    store_u32(b.qh, qh);
  }
};

}  // namespace flywheel::inline v0::formats
