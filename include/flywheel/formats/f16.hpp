// F16: IEEE binary16, 2 bytes per value: 11 bits of precision, largest value 65504, smallest 2^-24.
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::f16> {
  struct block {
    std::uint8_t value[2];
  };
  static constexpr int elements = 1;
  static void decode(const block& b, float* out) noexcept { *out = load_f16(b.value); }
  static void encode(const float* x, block& b) noexcept { store_f16(b.value, *x); }
};

}  // namespace flywheel::inline v0::formats
