// F64: IEEE binary64, 8 bytes per value. Decoding rounds to f32; encoding is exact.
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

template <>
struct codec<dtype::f64> {
  struct block {
    std::uint8_t value[8];
  };
  static constexpr int elements = 1;
  static void decode(const block& b, float* out) noexcept {
    *out = static_cast<float>(std::bit_cast<double>(load_u64(b.value)));
  }
  static void encode(const float* x, block& b) noexcept {
    const std::uint64_t bits = std::bit_cast<std::uint64_t>(static_cast<double>(*x));
    store_u32(b.value, static_cast<std::uint32_t>(bits));
    store_u32(b.value + 4, static_cast<std::uint32_t>(bits >> 32));
  }
};

}  // namespace flywheel::inline v0::formats
