// Half-precision scalars, exactly: IEEE binary16 (f16) and bfloat16 (bf16), to and from f32.
#pragma once

#include <bit>
#include <cstdint>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::formats {

/// Exact: every f16 value, denormals and infinities included, is an f32 value. A NaN keeps its payload.
[[nodiscard]] constexpr float f16_to_f32(std::uint16_t h) noexcept {
  const std::uint32_t sign = (h & 0x8000U) << 16;
  const std::uint32_t exponent = (h >> 10) & 31U;
  std::uint32_t mantissa = h & 0x3FFU;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000U | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (mantissa << 13));
  if (mantissa == 0) return std::bit_cast<float>(sign);
  // Denormal: mantissa * 2^-24 is a normal f32 number.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
  return sign != 0 ? -magnitude : magnitude;
}

/// Rounds to nearest, ties to even; values beyond the range become infinity; denormals are kept; NaN stays NaN (quiet).
[[nodiscard]] constexpr std::uint16_t f32_to_f16(float f) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<std::uint16_t>(sign | 0x7E00U | ((magnitude >> 13) & 0x1FFU));
  if (magnitude >= 0x47800000U) return static_cast<std::uint16_t>(sign | 0x7C00U);  // >= 2^16, infinity included
  std::uint32_t kept = 0;                                                           // the result before rounding
  std::uint32_t dropped = 0;       // what is cut off, scaled so that 0x80000000 is one half
  if (magnitude >= 0x38800000U) {  // >= 2^-14: normal
    kept = (magnitude - 0x38000000U) >> 13;
    dropped = magnitude << 19;
  } else {
    const std::uint32_t exponent = magnitude >> 23;
    if (exponent < 102) return static_cast<std::uint16_t>(sign);  // < 2^-25: less than half of the smallest denormal
    const std::uint32_t mantissa = (magnitude & 0x7FFFFFU) | 0x800000U;
    const std::uint32_t shift = 126U - exponent;  // 14..24
    kept = mantissa >> shift;
    dropped = mantissa << (32U - shift);
  }
  if (dropped > 0x80000000U || (dropped == 0x80000000U && (kept & 1U) != 0)) ++kept;  // may carry into infinity: right
  return static_cast<std::uint16_t>(sign | kept);
}

/// Exact: bf16 is the upper half of an f32.
[[nodiscard]] constexpr float bf16_to_f32(std::uint16_t h) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(h) << 16);
}

/// Rounds to nearest, ties to even; overflow becomes infinity; NaN stays NaN (quiet).
[[nodiscard]] constexpr std::uint16_t f32_to_bf16(float f) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace flywheel::inline v0::formats
