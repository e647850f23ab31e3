// IQ1_M: 256 values in 56 bytes, 1.75 bits per weight; 16 sub-blocks of 16 with 3-bit scales, groups of 8 ternary
// values from IQ1_S's codebook with a shift each.
//   x = d * (2 * scale + 1) * (level + shift),  level in {-1, 0, 1}, shift 1/8 or -1/8
#pragma once

#include "flywheel/formats/iq1_s.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::iq1_m> {
  struct block {
    std::uint8_t qs[32];  ///< per group the low byte of its point's number
    /// A nibble per group, even ones low: three upper bits of the number, then the shift's sign (set for -1/8).
    std::uint8_t qh[16];
    /// Four u16: in the low 12 bits the scales of four sub-blocks, in the upper four bits a nibble of d (f16: scale of
    /// scales), the lowest nibble first.
    std::uint8_t scales[8];
  };
  static constexpr int elements = 256;

  static void decode(const block& b, float* out) noexcept {
    unsigned bits = 0;
    for (int i = 0; i < 4; ++i) bits |= static_cast<unsigned>(b.scales[2 * i + 1] >> 4) << (4 * i);
    const float d = f16_to_f32(static_cast<std::uint16_t>(bits));
    for (int group = 0; group < 32; ++group) {
      const int s = (load_u16(b.scales + 2 * (group / 8)) >> (3 * (group / 2 % 4))) & 7;
      const int high = (b.qh[group / 2] >> (4 * (group % 2))) & 15;
      const int point = b.qs[group] | ((high & 7) << 8);
      decode_ternary(iq1_points[point], high >= 8, d * static_cast<float>(2 * s + 1), out + 8 * group);
    }
  }
};

}  // namespace flywheel::inline v0::formats
