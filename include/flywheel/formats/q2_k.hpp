// Q2_K: 256 values in 84 bytes, 2.625 bits per weight; 16 sub-blocks of 16 with 4-bit scales and minima.
//   x = d * (scale & 15) * q - dmin * (scale >> 4),  q in [0, 3]
// Per half of 128 values (32 bytes of qs): the four 2-bit planes, lowest first; each gives bytes 0-15, then 16-31, and
// takes one scale byte per 16 values.
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::q2_k> {
  struct block {
    std::uint8_t scales[16];  ///< low nibble: scale, high nibble: minimum
    std::uint8_t qs[64];
    std::uint8_t d[2];     ///< f16: scale of scales
    std::uint8_t dmin[2];  ///< f16: scale of minima
  };
  static constexpr int elements = 256;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    const float dmin = load_f16(b.dmin);
    for (int group = 0; group < 16; ++group) {  // 16 values each
      const int half = group / 8;
      const int shift = group % 8 / 2 * 2;
      const std::uint8_t* qs = b.qs + 32 * half + 16 * (group % 2);
      const float scale = d * static_cast<float>(b.scales[group] & 15);
      const float minimum = dmin * static_cast<float>(b.scales[group] >> 4);
      for (int l = 0; l < 16; ++l) *out++ = scale * static_cast<float>((qs[l] >> shift) & 3) - minimum;
    }
  }
};

}  // namespace flywheel::inline v0::formats
