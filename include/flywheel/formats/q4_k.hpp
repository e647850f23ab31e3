// Q4_K: 256 values in 144 bytes, 4.5 bits per weight; 8 sub-blocks of 32 with 6-bit scales and minima. The usual format
// of 4-bit models.
//   x = d * scale * q - dmin * minimum,  q in [0, 15]
// Per 64 values 32 bytes of qs: the low nibbles are the first 32 values, the high nibbles the next 32.
#pragma once

#include "flywheel/formats/codec.hpp"
#include "flywheel/formats/k_scales.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::q4_k> {
  struct block {
    std::uint8_t d[2];        ///< f16: scale of scales
    std::uint8_t dmin[2];     ///< f16: scale of minima
    std::uint8_t scales[12];  ///< see k_scales.hpp
    std::uint8_t qs[128];
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
      for (int l = 0; l < 32; ++l) *out++ = scale * static_cast<float>((qs[l] >> (4 * (j % 2))) & 15) - minimum;
    }
  }
};

}  // namespace flywheel::inline v0::formats
