// Q5_K: 256 values in 176 bytes, 5.5 bits per weight; Q4_K with a fifth bit kept apart.
//   x = d * scale * q - dmin * minimum,  q in [0, 31]
// Bit j of qh[l] is the fifth bit of value l of sub-block j.
#pragma once

#include "flywheel/formats/codec.hpp"
#include "flywheel/formats/k_scales.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::q5_k> {
  struct block {
    std::uint8_t d[2];        ///< f16: scale of scales
    std::uint8_t dmin[2];     ///< f16: scale of minima
    std::uint8_t scales[12];  ///< see k_scales.hpp
    std::uint8_t qh[32];      ///< fifth bits
    std::uint8_t qs[128];     ///< low nibbles, ordered as in Q4_K
  };
  static constexpr int elements = 256;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    const float dmin = load_f16(b.dmin);
    for (int j = 0; j < 8; ++j) {  // 32 values each
      const k_scale s = k_scale_at(b.scales, j);
      const float scale = d * static_cast<float>(s.scale);
      const float minimum = dmin * static_cast<float>(s.minimum);
      const std::uint8_t* qs = b.qs + 32 * (j / 2);
      for (int l = 0; l < 32; ++l) {
        const int q = ((qs[l] >> (4 * (j % 2))) & 15) | (((b.qh[l] >> j) & 1) << 4);
        *out++ = scale * static_cast<float>(q) - minimum;
      }
    }
  }
};

}  // namespace flywheel::inline v0::formats
