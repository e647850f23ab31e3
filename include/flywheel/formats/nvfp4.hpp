// NVFP4: 64 values in 36 bytes, 4.5 bits per weight; 4-bit floats (E2M1) in 4 sub-blocks of 16 with UE4M3 scales. A
// scale per tensor, where a model has one, is a tensor of its own.
//   x = ue4m3(d) / 2 * fp4_levels[q],  q in [0, 15]
#pragma once

#include "flywheel/formats/codec.hpp"
#include "flywheel/formats/mxfp4.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::nvfp4> {
  struct block {
    std::uint8_t d[4];    ///< UE4M3: unsigned, 4 bits of exponent (bias 7), 3 of mantissa, bit 7 unused
    std::uint8_t qs[32];  ///< 8 bytes per sub-block: low nibbles are values 0-7, high nibbles 8-15
  };
  static constexpr int elements = 64;

  /// ue4m3(d) / 2. 0x7F is not a number and counts as zero, like 0.
  [[nodiscard]] static constexpr float half_scale(std::uint8_t d) noexcept {
    if (d == 0x7F) return 0.0F;
    const std::uint32_t magnitude = d & 0x7FU;
    if (magnitude < 8U) return static_cast<float>(magnitude) * 0x1p-10F;
    return std::bit_cast<float>((magnitude << 20) + (119U << 23));  // bias 7 becomes 127, less one for the half
  }

  static void decode(const block& b, float* out) noexcept {
    for (int s = 0; s < 4; ++s) {
      const float d = half_scale(b.d[s]);
      for (int j = 0; j < 8; ++j) {
        out[16 * s + j] = d * static_cast<float>(fp4_levels[b.qs[8 * s + j] & 15]);
        out[16 * s + j + 8] = d * static_cast<float>(fp4_levels[b.qs[8 * s + j] >> 4]);
      }
    }
  }
};

}  // namespace flywheel::inline v0::formats
