// IQ4_NL: 32 values in 18 bytes, 4.5 bits per weight; Q4_0's layout with unevenly spaced levels, denser near zero.
//   x[j] = d * iq4_levels[q],  q in [0, 15]
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

/// The levels of IQ4_NL and IQ4_XS.
inline constexpr std::int8_t iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};

template <>
struct codec<dtype::iq4_nl> {
  struct block {
    std::uint8_t d[2];    ///< f16: the scale
    std::uint8_t qs[16];  ///< byte j: low nibble is value j, high nibble value j + 16
  };
  static constexpr int elements = 32;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int j = 0; j < 16; ++j) {
      out[j] = d * static_cast<float>(iq4_levels[b.qs[j] & 15]);
      out[j + 16] = d * static_cast<float>(iq4_levels[b.qs[j] >> 4]);
    }
  }

  /// The peak falls on level -127; then one least-squares step for the scale, sum(x * level) / sum(level^2).
  static void encode(const float* x, block& b) noexcept {
    const float id = inverse(signed_peak(x, 32) / static_cast<float>(iq4_levels[0]));
    float product = 0;
    float square = 0;
    std::uint8_t q[32];
    for (int j = 0; j < 32; ++j) {
      q[j] = nearest(iq4_levels, x[j] * id);
      const float t = static_cast<float>(iq4_levels[q[j]]);
      product += x[j] * t;
      square += t * t;
    }
    store_f16(b.d, id != 0 ? product / square : 0.0F);
    for (int j = 0; j < 16; ++j) b.qs[j] = static_cast<std::uint8_t>(q[j] | (q[j + 16] << 4));
  }
};

}  // namespace flywheel::inline v0::formats
