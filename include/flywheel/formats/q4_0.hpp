// Q4_0: 32 values in 18 bytes, 4.5 bits per weight; symmetric about zero, one level more on the side of the peak.
//   x[j] = d * (q - 8),  q in [0, 15]
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::q4_0> {
  struct block {
    std::uint8_t d[2];    ///< f16: the scale; negative when the value of largest magnitude is positive
    std::uint8_t qs[16];  ///< byte j: low nibble is value j, high nibble value j + 16
  };
  static constexpr int elements = 32;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int j = 0; j < 16; ++j) {
      out[j] = d * static_cast<float>((b.qs[j] & 15) - 8);
      out[j + 16] = d * static_cast<float>((b.qs[j] >> 4) - 8);
    }
  }

  static void encode(const float* x, block& b) noexcept {
    const float d = signed_peak(x, 32) / -8.0F;
    const float id = inverse(d);
    store_f16(b.d, d);
    for (int j = 0; j < 16; ++j)
      b.qs[j] = static_cast<std::uint8_t>(level(x[j] * id + 8.5F, 15) | (level(x[j + 16] * id + 8.5F, 15) << 4));
  }
};

}  // namespace flywheel::inline v0::formats
