// IQ1_S: 256 values in 50 bytes, 1.5625 bits per weight; 8 sub-blocks of 32 with 3-bit scales and a common shift,
// groups of 8 ternary values from a codebook of 2048.
//   x = d * (2 * scale + 1) * (level + shift),  level in {-1, 0, 1}, shift 1/8 or -1/8
#pragma once

#include "flywheel/formats/codebooks.hpp"
#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

/// One group of IQ1_S or IQ1_M: out[i] = scale * (level + shift), [8]; the shift is 1/8, negated when asked for.
inline void decode_ternary(std::uint32_t point, bool negative_shift, float scale, float* out) noexcept {
  const int shift = negative_shift ? -1 : 1;
  for (int i = 0; i < 8; ++i)
    out[i] = scale * (static_cast<float>(8 * iq1_levels[(point >> (2 * i)) & 3U] + shift) * 0.125F);
}

template <>
struct codec<dtype::iq1_s> {
  struct block {
    std::uint8_t d[2];    ///< f16: scale of scales
    std::uint8_t qs[32];  ///< per group the low byte of its point's number
    /// u16 per sub-block: four times the upper three bits of a point's number, the first group's lowest; bits 12-14 the
    /// scale, bit 15 set for a shift of -1/8.
    std::uint8_t qh[16];
  };
  static constexpr int elements = 256;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int j = 0; j < 8; ++j) {
      const int high = load_u16(b.qh + 2 * j);
      const float scale = d * static_cast<float>(2 * ((high >> 12) & 7) + 1);
      for (int l = 0; l < 4; ++l) {
        const int point = b.qs[4 * j + l] | (((high >> (3 * l)) & 7) << 8);
        decode_ternary(iq1_points[point], (high >> 15) != 0, scale, out + 32 * j + 8 * l);
      }
    }
  }
};

}  // namespace flywheel::inline v0::formats
