// F32: IEEE binary32, 4 bytes per value.
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::f32> {
  struct block {
    std::uint8_t value[4];
  };
  static constexpr int elements = 1;
  static void decode(const block& b, float* out) noexcept { *out = std::bit_cast<float>(load_u32(b.value)); }
  static void encode(const float* x, block& b) noexcept { store_u32(b.value, std::bit_cast<std::uint32_t>(*x)); }
};

}  // namespace flywheel::inline v0::formats
