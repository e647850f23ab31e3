// I8..I64, U8..U64, BOOL: little-endian integers; decoding rounds what f32 cannot hold to the nearest value.
#pragma once

#include <type_traits>

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

/// The common codec of integers of type T.
template <class T>
struct integer_codec {
  struct block {
    std::uint8_t value[sizeof(T)];
  };
  static constexpr int elements = 1;
  static void decode(const block& b, float* out) noexcept {
    std::make_unsigned_t<T> bits = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i)
      bits = static_cast<std::make_unsigned_t<T>>(bits | (static_cast<std::make_unsigned_t<T>>(b.value[i]) << (8 * i)));
    *out = static_cast<float>(static_cast<T>(bits));
  }
};

template <>
struct codec<dtype::i8> : integer_codec<std::int8_t> {};
template <>
struct codec<dtype::i16> : integer_codec<std::int16_t> {};
template <>
struct codec<dtype::i32> : integer_codec<std::int32_t> {};
template <>
struct codec<dtype::i64> : integer_codec<std::int64_t> {};
template <>
struct codec<dtype::u8> : integer_codec<std::uint8_t> {};
template <>
struct codec<dtype::u16> : integer_codec<std::uint16_t> {};
template <>
struct codec<dtype::u32> : integer_codec<std::uint32_t> {};
template <>
struct codec<dtype::u64> : integer_codec<std::uint64_t> {};
template <>
struct codec<dtype::boolean> : integer_codec<std::uint8_t> {};

}  // namespace flywheel::inline v0::formats
