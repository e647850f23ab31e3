// What IQ1, IQ2 and IQ3 have in common: groups of 8 or 4 neighbouring values are one point of a codebook, chosen so
// that points lie where such groups of weights do. Only the numbers of points and the signs are stored.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::formats {

/// A codebook: the level numbers of a point's values, value 0 in the lowest bits, 2 bits each for 8 values (IQ1, IQ2)
/// or 3 bits each for 4 values (IQ3).
#define FLYWHEEL_CODEBOOK(name, ...) inline constexpr std::uint16_t name##_points[] = {__VA_ARGS__};
#include "flywheel/formats/codebooks.inc"

/// Levels of the codebooks, magnitudes but for IQ1. A level number of all ones occurs in no point of IQ1 and IQ2.
inline constexpr std::int8_t iq1_levels[4] = {-1, 0, 1, 1};
inline constexpr std::int8_t iq2_levels[4] = {8, 25, 43, 43};
inline constexpr std::int8_t iq3_xxs_levels[8] = {4, 12, 20, 28, 36, 44, 52, 62};
inline constexpr std::int8_t iq3_s_levels[8] = {1, 3, 5, 7, 9, 11, 13, 15};

/// Eight signs of which seven are stored: bit i set makes value i negative, and the number of set bits is even.
[[nodiscard]] constexpr std::uint32_t even_signs(std::uint32_t seven) noexcept {
  seven &= 127U;
  return seven | ((static_cast<std::uint32_t>(std::popcount(seven)) & 1U) << 7);
}

/// The values of one point: out[i] = scale * (+-) levels[...]; 8 for four levels, 4 for eight.
template <std::size_t Levels>
void decode_point(std::uint32_t point, std::uint32_t signs, const std::int8_t (&levels)[Levels], float scale,
                  float* out) noexcept {
  constexpr int bits = std::countr_zero(Levels);
  for (int i = 0; i < (bits == 2 ? 8 : 4); ++i) {
    const int level = levels[(point >> (bits * i)) & (Levels - 1)];
    out[i] = scale * static_cast<float>(((signs >> i) & 1U) != 0 ? -level : level);
  }
}

}  // namespace flywheel::inline v0::formats
