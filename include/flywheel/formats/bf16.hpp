// BF16: the upper half of an f32, 2 bytes per value: 8 bits of precision, the range of f32.
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::bf16> {
  struct block {
    std::uint8_t value[2];
  };
  static constexpr int elements = 1;
  static void decode(const block& b, float* out) noexcept { *out = bf16_to_f32(load_u16(b.value)); }
  static void encode(const float* x, block& b) noexcept { store_u16(b.value, f32_to_bf16(*x)); }
};

}  // namespace flywheel::inline v0::formats
