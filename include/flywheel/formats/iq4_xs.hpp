// IQ4_XS: 256 values in 136 bytes, 4.25 bits per weight; IQ4_NL's levels in 8 sub-blocks of 32 with 6-bit scales.
//   x = d * (scale - 32) * iq4_levels[q],  q in [0, 15]
#pragma once

#include "flywheel/formats/codec.hpp"
#include "flywheel/formats/iq4_nl.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::iq4_xs> {
  struct block {
    std::uint8_t d[2];         ///< f16: scale of scales
    std::uint8_t scales_h[2];  ///< u16: bits 2j and 2j+1 are the upper two bits of scale j
    std::uint8_t scales_l[4];  ///< nibbles: the low four bits, even j in the low nibble
    std::uint8_t qs[128];      ///< per 32 values 16 bytes: low nibbles are values 0-15, high nibbles 16-31
  };
  static constexpr int elements = 256;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    const int high = load_u16(b.scales_h);
    for (int j = 0; j < 8; ++j) {
      const int scale = ((b.scales_l[j / 2] >> (4 * (j % 2))) & 15) | (((high >> (2 * j)) & 3) << 4);
      const float s = d * static_cast<float>(scale - 32);
      for (int l = 0; l < 16; ++l) {
        out[32 * j + l] = s * static_cast<float>(iq4_levels[b.qs[16 * j + l] & 15]);
        out[32 * j + l + 16] = s * static_cast<float>(iq4_levels[b.qs[16 * j + l] >> 4]);
      }
    }
  }
};

}  // namespace flywheel::inline v0::formats
