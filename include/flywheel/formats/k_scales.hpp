// The packed scales of Q4_K and Q5_K: eight 6-bit scales and eight 6-bit minima in 12 bytes.
#pragma once

#include <cstdint>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::formats {

struct k_scale {
  int scale;    ///< 0..63
  int minimum;  ///< 0..63
};

/// Of sub-block j, 0..7. Bytes 0-3 hold scales 0-3 and bytes 4-7 minima 0-3 in their low six bits; bytes 8-11 hold the
/// low nibbles of scales and minima 4-7, whose upper two bits are the upper two bits of bytes 0-7.
[[nodiscard]] constexpr k_scale k_scale_at(const std::uint8_t (&packed)[12], int j) noexcept {
  if (j < 4) return {packed[j] & 63, packed[j + 4] & 63};
  return {(packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4), (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4)};
}

}  // namespace flywheel::inline v0::formats
