// IQ2_S: 256 values in 82 bytes, 2.5625 bits per weight; 16 sub-blocks of 16 with 4-bit scales, groups of 8 values from
// a codebook of 1024 magnitudes with signs.
//   x = d * (2 * scale + 1) / 8 * (+-) level,  level in {8, 25, 43}
#pragma once

#include "flywheel/formats/codebooks.hpp"
#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::iq2_s> {
  struct block {
    std::uint8_t d[2];       ///< f16: scale of scales
    std::uint8_t qs[32];     ///< per group the low byte of its point's number
    std::uint8_t signs[32];  ///< per group: bit i makes value i negative
    std::uint8_t qh[8];      ///< two bits per group: the upper bits of its point's number
    std::uint8_t scales[8];  ///< nibbles: even sub-blocks in the low one
  };
  static constexpr int elements = 256;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int group = 0; group < 32; ++group) {
      const int s = (b.scales[group / 4] >> (4 * (group / 2 % 2))) & 15;
      const int point = b.qs[group] | (((b.qh[group / 4] >> (2 * (group % 4))) & 3) << 8);
      const float scale = d * static_cast<float>(2 * s + 1) * 0.125F;
      decode_point(iq2_s_points[point], b.signs[group], iq2_levels, scale, out + 8 * group);
    }
  }
};

}  // namespace flywheel::inline v0::formats
