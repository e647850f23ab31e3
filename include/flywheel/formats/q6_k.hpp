// Q6_K: 256 values in 210 bytes, 6.5625 bits per weight; 16 sub-blocks of 16 with signed 8-bit scales, symmetric.
// The usual format of output matrices and of the sensitive layers of 4-bit models.
//   x = d * scale * (q - 32),  q in [0, 63]
// Per half of 128 values (ql 64 bytes, qh 32 bytes, 8 scales), value 32 * quarter + l: low nibble of q is a nibble of
// ql[l + 32 * (quarter % 2)] (low nibble for quarters 0 and 1), the upper two bits are bits 2 * quarter of qh[l].
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::q6_k> {
  struct block {
    std::uint8_t ql[128];     ///< low four bits
    std::uint8_t qh[64];      ///< high two bits
    std::uint8_t scales[16];  ///< signed bytes, one per 16 values
    std::uint8_t d[2];        ///< f16: scale of scales
  };
  static constexpr int elements = 256;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int half = 0; half < 2; ++half) {
      const std::uint8_t* ql = b.ql + 64 * half;
      const std::uint8_t* qh = b.qh + 32 * half;
      const std::uint8_t* scales = b.scales + 8 * half;
      for (int quarter = 0; quarter < 4; ++quarter)
        for (int l = 0; l < 32; ++l) {
          const int low = (ql[l + 32 * (quarter % 2)] >> (4 * (quarter / 2))) & 15;
          const int high = (qh[l] >> (2 * quarter)) & 3;
          const float scale = d * static_cast<float>(as_signed(scales[2 * quarter + l / 16]));
          *out++ = scale * static_cast<float>((low | (high << 4)) - 32);
        }
    }
  }
};

}  // namespace flywheel::inline v0::formats
