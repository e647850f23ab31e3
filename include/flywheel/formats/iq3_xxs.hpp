// IQ3_XXS: 256 values in 98 bytes, 3.0625 bits per weight; 8 sub-blocks of 32 with 4-bit scales, groups of 4 values
// from a codebook of 256 magnitudes, an even number of minus signs in 8 values.
//   x = d * (2 * scale + 1) / 4 * (+-) level,  level in {4, 12, 20, 28, 36, 44, 52, 62}
#pragma once

#include "flywheel/formats/codebooks.hpp"
#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::iq3_xxs> {
  struct block {
    std::uint8_t d[2];    ///< f16: scale of scales
    std::uint8_t qs[64];  ///< per group the number of its point
    /// u32 per sub-block: four times seven signs (see even_signs), the first ones lowest, and the scale in the upper
    /// four bits.
    std::uint8_t signs_and_scales[32];
  };
  static constexpr int elements = 256;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int j = 0; j < 8; ++j) {
      const std::uint32_t rest = load_u32(b.signs_and_scales + 4 * j);
      const float scale = d * static_cast<float>(2 * (rest >> 28) + 1) * 0.25F;
      for (int l = 0; l < 8; ++l) {
        const std::uint32_t signs = even_signs(rest >> (7 * (l / 2))) >> (4 * (l % 2));
        decode_point(iq3_xxs_points[b.qs[8 * j + l]], signs, iq3_xxs_levels, scale, out + 32 * j + 4 * l);
      }
    }
  }
};

}  // namespace flywheel::inline v0::formats
