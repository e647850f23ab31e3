// Q8_G128 and Q4_G128, flywheel's own: 128 values under one f16 scale, symmetric, 8.125 and 4.125 bits per weight; what
// neural processing units take as "group 128".
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

/// x[j] = d * qs[j],  qs in [-127, 127]
template <>
struct codec<dtype::q8_g128> {
  struct block {
    std::uint8_t d[2];     ///< f16: the scale, largest magnitude / 127
    std::uint8_t qs[128];  ///< signed bytes
  };
  static constexpr int elements = 128;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int j = 0; j < 128; ++j) out[j] = d * static_cast<float>(as_signed(b.qs[j]));
  }

  static void encode(const float* x, block& b) noexcept {
    const float d = std::fabs(signed_peak(x, 128)) / 127.0F;
    const float id = inverse(d);
    store_f16(b.d, d);
    for (int j = 0; j < 128; ++j) b.qs[j] = signed_level(x[j] * id, -127, 127);
  }
};

/// x[j] = d * (q[j] - 8),  q in [0, 15]
template <>
struct codec<dtype::q4_g128> {
  struct block {
    std::uint8_t d[2];    ///< f16: the scale, the value of largest magnitude / -8
    std::uint8_t qs[64];  ///< q[j] in the low nibble of byte j, q[j + 64] in the high one
  };
  static constexpr int elements = 128;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int j = 0; j < 64; ++j) {
      out[j] = d * static_cast<float>((b.qs[j] & 15) - 8);
      out[j + 64] = d * static_cast<float>((b.qs[j] >> 4) - 8);
    }
  }

  static void encode(const float* x, block& b) noexcept {
    const float d = signed_peak(x, 128) / -8.0F;
    const float id = inverse(d);
    store_f16(b.d, d);
    for (int j = 0; j < 64; ++j)
      b.qs[j] = static_cast<std::uint8_t>(level(x[j] * id + 8.5F, 15) | (level(x[j + 64] * id + 8.5F, 15) << 4));
  }
};

}  // namespace flywheel::inline v0::formats
