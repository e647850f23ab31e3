// Q8_0: 32 values in 34 bytes, 8.5 bits per weight; symmetric, practically lossless; also the format of activations.
//   x[j] = d * qs[j],  qs in [-127, 127]
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::q8_0> {
  struct block {
    std::uint8_t d[2];    ///< f16: the scale, largest magnitude / 127
    std::uint8_t qs[32];  ///< signed bytes
  };
  static constexpr int elements = 32;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(as_signed(b.qs[j]));
  }

  static void encode(const float* x, block& b) noexcept {
    const float d = std::fabs(signed_peak(x, 32)) / 127.0F;
    const float id = inverse(d);
    store_f16(b.d, d);
    for (int j = 0; j < 32; ++j) b.qs[j] = signed_level(x[j] * id, -127, 127);
  }
};

}  // namespace flywheel::inline v0::formats
