// IQ3_S: 256 values in 110 bytes, 3.4375 bits per weight; 8 sub-blocks of 32 with 4-bit scales, groups of 4 values from
// a codebook of 512 magnitudes with signs.
//   x = d * (2 * scale + 1) * (+-) level,  level in {1, 3, 5, 7, 9, 11, 13, 15}
#pragma once

#include "flywheel/formats/codebooks.hpp"
#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::iq3_s> {
  struct block {
    std::uint8_t d[2];       ///< f16: scale of scales
    std::uint8_t qs[64];     ///< per group the low byte of its point's number
    std::uint8_t qh[8];      ///< one bit per group: the ninth bit of its point's number
    std::uint8_t signs[32];  ///< one bit per value, set for negative ones
    std::uint8_t scales[4];  ///< nibbles: even sub-blocks in the low one
  };
  static constexpr int elements = 256;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int group = 0; group < 64; ++group) {
      const int s = (b.scales[group / 16] >> (4 * (group / 8 % 2))) & 15;
      const int point = b.qs[group] | (((b.qh[group / 8] >> (group % 8)) & 1) << 8);
      const std::uint32_t signs = b.signs[group / 2] >> (4 * (group % 2));
      decode_point(iq3_s_points[point], signs, iq3_s_levels, d * static_cast<float>(2 * s + 1), out + 4 * group);
    }
  }
};

}  // namespace flywheel::inline v0::formats
