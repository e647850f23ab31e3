// Q3_K: 256 values in 110 bytes, 3.4375 bits per weight; 16 sub-blocks of 16 with 6-bit scales, symmetric.
//   x = d * (scale - 32) * (q - 4),  q in [0, 7]
// Low two bits of q in qs, ordered as in Q2_K. The third bit is in hmask: 32 bytes serve all 256 values, bit
// 4 * half + plane of byte l belongs to value l of that plane.
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::q3_k> {
  struct block {
    std::uint8_t hmask[32];   ///< the third bits
    std::uint8_t qs[64];      ///< the low two bits
    std::uint8_t scales[12];  ///< 16 scales of 6 bits: see scale()
    std::uint8_t d[2];        ///< f16: scale of scales
  };
  static constexpr int elements = 256;

  /// Scale i, 0..63: low four bits are a nibble of byte i % 8, high two bits lie in byte 8 + i % 4.
  static int scale(const block& b, int i) noexcept {
    const int low = i < 8 ? b.scales[i] & 15 : b.scales[i - 8] >> 4;
    const int high = (b.scales[8 + i % 4] >> (i / 4 * 2)) & 3;
    return low | (high << 4);
  }

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int group = 0; group < 16; ++group) {  // 16 values each
      const int half = group / 8;
      const int plane = group % 8 / 2;
      const int first = 16 * (group % 2);
      const float s = d * static_cast<float>(scale(b, group) - 32);
      for (int l = first; l < first + 16; ++l) {
        const int low = (b.qs[32 * half + l] >> (2 * plane)) & 3;
        const int third = (b.hmask[l] >> (4 * half + plane)) & 1;
        *out++ = s * static_cast<float>(low + 4 * third - 4);
      }
    }
  }
};

}  // namespace flywheel::inline v0::formats
