// IQ2_XS: 256 values in 74 bytes, 2.3125 bits per weight; 16 sub-blocks of 16 with 4-bit scales, groups of 8 values
// from a codebook of 512 magnitudes with an even number of minus signs.
//   x = d * (2 * scale + 1) / 8 * (+-) level,  level in {8, 25, 43}
#pragma once

#include "flywheel/formats/codebooks.hpp"
#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::iq2_xs> {
  struct block {
    std::uint8_t d[2];       ///< f16: scale of scales
    std::uint8_t qs[64];     ///< u16 per group: the point's number in nine bits, seven signs above (see even_signs)
    std::uint8_t scales[8];  ///< nibbles: even sub-blocks in the low one
  };
  static constexpr int elements = 256;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int group = 0; group < 32; ++group) {
      const int s = (b.scales[group / 4] >> (4 * (group / 2 % 2))) & 15;
      const std::uint32_t q = load_u16(b.qs + 2 * group);
      const float scale = d * static_cast<float>(2 * s + 1) * 0.125F;
      decode_point(iq2_xs_points[q & 511U], even_signs(q >> 9), iq2_levels, scale, out + 8 * group);
    }
  }
};

}  // namespace flywheel::inline v0::formats
