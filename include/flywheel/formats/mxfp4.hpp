// MXFP4: 32 values in 17 bytes, 4.25 bits per weight; 4-bit floats (E2M1) with a power of two (E8M0) as scale. OCP
// Microscaling Formats 1.0; the format of gpt-oss's experts.
//   x[j] = 2^(e - 128) * fp4_levels[q],  q in [0, 15]
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

/// Twice the values of E2M1, so that they are integers; MXFP4 and NVFP4 halve their scales in return.
inline constexpr std::int8_t fp4_levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

template <>
struct codec<dtype::mxfp4> {
  struct block {
    std::uint8_t e;       ///< E8M0: exponent with bias 127
    std::uint8_t qs[16];  ///< byte j: low nibble is value j, high nibble value j + 16
  };
  static constexpr int elements = 32;

  /// 2^(e - 128): a denormal for e < 2.
  [[nodiscard]] static constexpr float scale(std::uint8_t e) noexcept {
    return std::bit_cast<float>(e < 2 ? 0x00200000U << e : (e - 1U) << 23);
  }

  static void decode(const block& b, float* out) noexcept {
    const float d = scale(b.e);
    for (int j = 0; j < 16; ++j) {
      out[j] = d * static_cast<float>(fp4_levels[b.qs[j] & 15]);
      out[j + 16] = d * static_cast<float>(fp4_levels[b.qs[j] >> 4]);
    }
  }

  static void encode(const float* x, block& b) noexcept {
    const float peak = std::fabs(signed_peak(x, 32));
    const int e = peak > 0 ? std::clamp(std::isinf(peak) ? 254 : std::ilogb(peak) + 125, 0, 254) : 0;
    b.e = static_cast<std::uint8_t>(e);
    const double inverse_scale = std::ldexp(1.0, 128 - e);  // may exceed f32
    const auto q = [&](float v) { return nearest(fp4_levels, static_cast<float>(v * inverse_scale)); };
    for (int j = 0; j < 16; ++j) b.qs[j] = static_cast<std::uint8_t>(q(x[j]) | (q(x[j + 16]) << 4));
  }
};

}  // namespace flywheel::inline v0::formats
