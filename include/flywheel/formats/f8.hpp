// F8_E4M3 and F8_E5M2: 8-bit floats of safetensors files (Micikevicius et al. 2022, "FP8 formats for deep learning").
// E4M3: no infinity, 0x7F and 0xFF are NaN, largest value 448, smallest 2^-9. E5M2: the upper half of an f16.
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::f8_e4m3> {
  struct block {
    std::uint8_t value;
  };
  static constexpr int elements = 1;
  static void decode(const block& b, float* out) noexcept {
    const std::uint32_t sign = (b.value & 0x80U) << 24;
    const std::uint32_t magnitude = b.value & 0x7FU;
    if (magnitude == 0x7FU) {
      *out = std::bit_cast<float>(sign | 0x7FC00000U);
    } else if (magnitude >= 8U) {  // bias 7 becomes 127
      *out = std::bit_cast<float>(sign | ((magnitude << 20) + (120U << 23)));
    } else {
      const float value = static_cast<float>(magnitude) * 0x1p-9F;
      *out = sign != 0 ? -value : value;
    }
  }
};

template <>
struct codec<dtype::f8_e5m2> {
  struct block {
    std::uint8_t value;
  };
  static constexpr int elements = 1;
  static void decode(const block& b, float* out) noexcept {
    *out = f16_to_f32(static_cast<std::uint16_t>(b.value << 8));
  }
};

}  // namespace flywheel::inline v0::formats
