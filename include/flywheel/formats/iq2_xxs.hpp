// IQ2_XXS: 256 values in 66 bytes, 2.0625 bits per weight; 8 sub-blocks of 32 with 4-bit scales, groups of 8 values
// from a codebook of 256 magnitudes with an even number of minus signs.
//   x = d * (2 * scale + 1) / 8 * (+-) level,  level in {8, 25, 43}
#pragma once

#include "flywheel/formats/codebooks.hpp"
#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::iq2_xxs> {
  struct block {
    std::uint8_t d[2];  ///< f16: scale of scales
    /// Per sub-block 8 bytes: the numbers of four points, then a u32: four times seven signs (see even_signs), the
    /// first group's in the lowest bits, and the scale in the upper four.
    std::uint8_t qs[64];
  };
  static constexpr int elements = 256;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int j = 0; j < 8; ++j) {
      const std::uint8_t* points = b.qs + 8 * j;
      const std::uint32_t rest = load_u32(points + 4);
      const float scale = d * static_cast<float>(2 * (rest >> 28) + 1) * 0.125F;
      for (int l = 0; l < 4; ++l)
        decode_point(iq2_xxs_points[points[l]], even_signs(rest >> (7 * l)), iq2_levels, scale, out + 32 * j + 8 * l);
    }
  }
};

}  // namespace flywheel::inline v0::formats
