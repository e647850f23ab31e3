// What a tensor format is, in code. Each <format>.hpp specialises codec<dtype> with
//
//   struct block;                                    its layout: unsigned char fields only, so alignment 1
//   static constexpr int elements;                   values in a block
//   static void decode(const block&, float* out);    out: [elements]
//   static void encode(const float* x, block&);      x: [elements]; optional
//
// or, for a dtype of kind row,
//
//   static void decode_row(const std::uint8_t* row, std::int64_t n, float* out);
//   static void encode_row(const float* x, std::int64_t n, std::uint8_t* row);
//
// Headers only, no dependency on the compiled library. All multi-byte fields are little-endian in the file and are
// read byte by byte, which compilers turn into one load.
//
// Decoders are bit for bit reproducible whatever the compiler does with a*b+c: the products they form are exact in f32
// (an 11-bit f16 scale times small integers), so a fused multiply-add rounds as two operations do.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "flywheel/core/dtype.hpp"
#include "flywheel/formats/half.hpp"

namespace flywheel::inline v0::formats {

/// Specialised by each format's header; an incomplete type means that this version has no codec for `Type`.
template <dtype Type>
struct codec;

/// Decodes `n` values (whole blocks, or one row) to f32. No alignment is needed.
template <dtype Type>
void decode_blocks(const std::byte* blocks, std::int64_t n, float* out) {
  using C = codec<Type>;
  if constexpr (info(Type)->kind == dtype_kind::row) {
    C::decode_row(reinterpret_cast<const std::uint8_t*>(blocks), n, out);
  } else {
    using block = typename C::block;
    static_assert(sizeof(block) == info(Type)->block_bytes && alignof(block) == 1);
    static_assert(C::elements == info(Type)->block_elements);
    for (; n >= C::elements; n -= C::elements, blocks += sizeof(block), out += C::elements)
      C::decode(*reinterpret_cast<const block*>(blocks), out);
  }
}

/// Encodes `n` values (whole blocks, or one row). Any input is allowed; NaN and infinity give a block that decodes to
/// something.
template <dtype Type>
void encode_blocks(const float* x, std::int64_t n, std::byte* blocks) {
  using C = codec<Type>;
  if constexpr (info(Type)->kind == dtype_kind::row) {
    C::encode_row(x, n, reinterpret_cast<std::uint8_t*>(blocks));
  } else {
    using block = typename C::block;
    for (; n >= C::elements; n -= C::elements, blocks += sizeof(block), x += C::elements)
      C::encode(x, *reinterpret_cast<block*>(blocks));
  }
}

// Helpers of the format headers.

[[nodiscard]] constexpr std::uint16_t load_u16(const std::uint8_t* p) noexcept {
  return static_cast<std::uint16_t>(p[0] | (p[1] << 8));
}
[[nodiscard]] constexpr std::uint32_t load_u32(const std::uint8_t* p) noexcept {
  return static_cast<std::uint32_t>(load_u16(p)) | (static_cast<std::uint32_t>(load_u16(p + 2)) << 16);
}
[[nodiscard]] constexpr std::uint64_t load_u64(const std::uint8_t* p) noexcept {
  return static_cast<std::uint64_t>(load_u32(p)) | (static_cast<std::uint64_t>(load_u32(p + 4)) << 32);
}
[[nodiscard]] constexpr float load_f16(const std::uint8_t* p) noexcept { return f16_to_f32(load_u16(p)); }
constexpr void store_u16(std::uint8_t* p, std::uint16_t v) noexcept {
  p[0] = static_cast<std::uint8_t>(v);
  p[1] = static_cast<std::uint8_t>(v >> 8);
}
constexpr void store_u32(std::uint8_t* p, std::uint32_t v) noexcept {
  store_u16(p, static_cast<std::uint16_t>(v));
  store_u16(p + 2, static_cast<std::uint16_t>(v >> 16));
}
constexpr void store_f16(std::uint8_t* p, float v) noexcept { store_u16(p, f32_to_f16(v)); }

/// A byte read as a signed number.
[[nodiscard]] constexpr int as_signed(std::uint8_t byte) noexcept { return static_cast<std::int8_t>(byte); }

/// v cut off (not rounded) to an integer in [0, highest]; NaN gives 0.
[[nodiscard]] constexpr std::uint8_t level(float v, int highest) noexcept {
  if (!(v > 0)) return 0;
  return static_cast<std::uint8_t>(v < static_cast<float>(highest) ? static_cast<int>(v) : highest);
}

/// v rounded to the nearest integer in [lowest, highest] as a signed byte; 0 for NaN and what lies outside.
[[nodiscard]] inline std::uint8_t signed_level(float v, int lowest, int highest) noexcept {
  const float q = std::round(v);
  return static_cast<std::uint8_t>(
      q >= static_cast<float>(lowest) && q <= static_cast<float>(highest) ? static_cast<int>(q) : 0);
}

/// 1 / d, or 0 for 0: a block of zeros.
[[nodiscard]] constexpr float inverse(float d) noexcept { return d != 0 ? 1.0F / d : 0.0F; }

/// The signed value of largest magnitude, the first of equals; 0 if all are NaN.
[[nodiscard]] inline float signed_peak(const float* x, std::int64_t n) noexcept {
  float peak = 0;
  for (std::int64_t i = 0; i < n; ++i)
    if (std::fabs(x[i]) > std::fabs(peak)) peak = x[i];
  return peak;
}

/// Index of the entry of an ascending table nearest to `v`; the lower index wins a tie; NaN gives 0.
template <std::size_t N>
[[nodiscard]] constexpr std::uint8_t nearest(const std::int8_t (&table)[N], float v) noexcept {
  std::size_t best = 0;
  float distance = std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < N; ++i) {
    const float here =
        v < static_cast<float>(table[i]) ? static_cast<float>(table[i]) - v : v - static_cast<float>(table[i]);
    if (here < distance) {
      distance = here;
      best = i;
    }
  }
  return static_cast<std::uint8_t>(best);
}

}  // namespace flywheel::inline v0::formats
