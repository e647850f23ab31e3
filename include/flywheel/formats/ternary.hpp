// TQ1_0, TQ2_0: ternary weights with one scale per 256 (BitNet b1.58 and its kin).
// Q1_0, Q2_0: one and two bits per weight with one scale per 128 and 64.
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

/// TQ1_0: 256 values in 54 bytes, 1.6875 bits per weight; x = d * (t - 1), t in [0, 2].
/// A byte b stands for the fraction b / 256 in base 3: its first digits are the values (five, in qh four). Digit n is
/// found by multiplying with 3^n modulo 256 and taking the integer part of 3 * fraction. Of 32 (16, 4) bytes in a
/// group, the first digits of all come first, then the second ones, and so on.
template <>
struct codec<dtype::tq1_0> {
  struct block {
    std::uint8_t qs[48];  ///< groups of 32 and 16 bytes, five digits each
    std::uint8_t qh[4];   ///< one group of 4 bytes, four digits each
    std::uint8_t d[2];    ///< f16: the scale
  };
  static constexpr int elements = 256;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    const auto group = [&](const std::uint8_t* bytes, int count, int digits) {
      std::uint32_t power = 1;
      for (int n = 0; n < digits; ++n, power *= 3)
        for (int i = 0; i < count; ++i) {
          const std::uint32_t fraction = (bytes[i] * power) & 255U;
          *out++ = d * static_cast<float>(static_cast<int>((fraction * 3U) >> 8) - 1);
        }
    };
    group(b.qs, 32, 5);
    group(b.qs + 32, 16, 5);
    group(b.qh, 4, 4);
  }
};

/// TQ2_0: 256 values in 66 bytes, 2.0625 bits per weight; x = d * (q - 1), q in [0, 3] (3 is not used by encoders).
/// Per 128 values 32 bytes: the four 2-bit planes, lowest first.
template <>
struct codec<dtype::tq2_0> {
  struct block {
    std::uint8_t qs[64];
    std::uint8_t d[2];  ///< f16: the scale
  };
  static constexpr int elements = 256;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int half = 0; half < 2; ++half)
      for (int plane = 0; plane < 4; ++plane)
        for (int l = 0; l < 32; ++l) *out++ = d * static_cast<float>(((b.qs[32 * half + l] >> (2 * plane)) & 3) - 1);
  }
};

/// Q1_0: 128 values in 18 bytes, 1.125 bits per weight; x = d for a set bit, -d for a clear one; lowest bit first.
template <>
struct codec<dtype::q1_0> {
  struct block {
    std::uint8_t d[2];  ///< f16: the scale
    std::uint8_t qs[16];
  };
  static constexpr int elements = 128;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int j = 0; j < 128; ++j) out[j] = ((b.qs[j / 8] >> (j % 8)) & 1) != 0 ? d : -d;
  }
};

/// Q2_0: 64 values in 18 bytes, 2.25 bits per weight; x = d * (q - 1), q in [0, 3]; lowest bits first.
template <>
struct codec<dtype::q2_0> {
  struct block {
    std::uint8_t d[2];  ///< f16: the scale
    std::uint8_t qs[16];
  };
  static constexpr int elements = 64;

  static void decode(const block& b, float* out) noexcept {
    const float d = load_f16(b.d);
    for (int j = 0; j < 64; ++j) out[j] = d * static_cast<float>(((b.qs[j / 4] >> (2 * (j % 4))) & 3) - 1);
  }
};

}  // namespace flywheel::inline v0::formats
