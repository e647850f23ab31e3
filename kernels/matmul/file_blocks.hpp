// Blocks of the file formats taken apart for packing: unsigned codes in the order of k, and the scale fields as stored.
//   w[k] = scale * (value of code[k])  or  scale * code[k] - minimum
// Layouts: include/flywheel/formats/<format>.hpp. In an unnamed namespace: see f32_product.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "flywheel/core/dtype.hpp"

namespace flywheel::inline v0::kernels {
namespace {

struct block_parts {
  alignas(64) std::uint8_t code[256];
  std::uint16_t d;         ///< f16 scale, or scale of scales; the E8M0 byte for MXFP4
  std::uint16_t m;         ///< f16 minimum, or scale of minima
  std::uint8_t scale[16];  ///< of sub-blocks; signed where the format's are
  std::uint8_t minimum[16];
};

using file_bytes = const std::uint8_t*;

inline std::uint16_t file_u16(file_bytes p) { return static_cast<std::uint16_t>(p[0] | p[1] << 8); }

/// n bytes of nibbles, n a multiple of 8: the low ones are elements 0 .. n-1, the high ones n .. 2n-1.
inline void split_nibbles(file_bytes qs, int n, std::uint8_t* code) {
  for (int j = 0; j < n; j += 8) {
    std::uint64_t bytes;
    __builtin_memcpy(&bytes, qs + j, 8);
    const std::uint64_t low = bytes & 0x0f0f0f0f0f0f0f0fu, high = bytes >> 4 & 0x0f0f0f0f0f0f0f0fu;
    __builtin_memcpy(code + j, &low, 8);
    __builtin_memcpy(code + n + j, &high, 8);
  }
}

/// code[j] |= (from[j] >> shift & mask) << to, for n bytes, a multiple of 8; the result of each byte must fit it.
inline void merge_bits(file_bytes from, int shift, int mask, int to, int n, std::uint8_t* code) {
  const std::uint64_t all = static_cast<std::uint64_t>(mask) * 0x0101010101010101u;
  for (int j = 0; j < n; j += 8) {
    std::uint64_t bytes, old;
    __builtin_memcpy(&bytes, from + j, 8);
    __builtin_memcpy(&old, code + j, 8);
    old |= (bytes >> shift & all) << to;
    __builtin_memcpy(code + j, &old, 8);
  }
}

/// Adds bit j of the little-endian word at qh to element j, as the bit worth 16.
inline void add_fifth_bits(file_bytes qh, std::uint8_t* code) {
  for (int byte = 0; byte < 4; ++byte) {
    std::uint64_t old, bits = qh[byte] * 0x0101010101010101u & 0x8040201008040201u;  // bit j in byte j
    bits = (bits + 0x00406070787c7e7fu) >> 7 & 0x0101010101010101u;                  // anything but 0 becomes 1
    __builtin_memcpy(&old, code + 8 * byte, 8);
    old |= bits << 4;
    __builtin_memcpy(code + 8 * byte, &old, 8);
  }
}

/// Eight 6-bit scales and minima in 12 bytes (Q4_K, Q5_K).
inline void take_k_scales(file_bytes packed, block_parts& parts) {
  for (int j = 0; j < 4; ++j) {
    parts.scale[j] = packed[j] & 63;
    parts.minimum[j] = packed[j + 4] & 63;
    parts.scale[j + 4] = static_cast<std::uint8_t>((packed[j + 8] & 15) | (packed[j] >> 6 << 4));
    parts.minimum[j + 4] = static_cast<std::uint8_t>(packed[j + 8] >> 4 | (packed[j + 4] >> 6 << 4));
  }
}

template <dtype Type>
void take_apart(file_bytes b, block_parts& parts) {
  if constexpr (Type == dtype::q4_0 || Type == dtype::iq4_nl) {
    parts.d = file_u16(b);
    split_nibbles(b + 2, 16, parts.code);
  } else if constexpr (Type == dtype::q4_1) {
    parts.d = file_u16(b);
    parts.m = file_u16(b + 2);
    split_nibbles(b + 4, 16, parts.code);
  } else if constexpr (Type == dtype::q5_0) {
    parts.d = file_u16(b);
    split_nibbles(b + 6, 16, parts.code);
    add_fifth_bits(b + 2, parts.code);
  } else if constexpr (Type == dtype::q5_1) {
    parts.d = file_u16(b);
    parts.m = file_u16(b + 2);
    split_nibbles(b + 8, 16, parts.code);
    add_fifth_bits(b + 4, parts.code);
  } else if constexpr (Type == dtype::q8_0) {
    parts.d = file_u16(b);
    for (int j = 0; j < 32; ++j) parts.code[j] = b[2 + j] ^ 0x80;
  } else if constexpr (Type == dtype::q8_g128) {
    parts.d = file_u16(b);
    for (int j = 0; j < 128; ++j) parts.code[j] = b[2 + j] ^ 0x80;
  } else if constexpr (Type == dtype::q4_g128) {
    parts.d = file_u16(b);
    split_nibbles(b + 2, 64, parts.code);
  } else if constexpr (Type == dtype::mxfp4) {
    parts.d = b[0];
    split_nibbles(b + 1, 16, parts.code);
  } else if constexpr (Type == dtype::q4_k || Type == dtype::q5_k) {
    parts.d = file_u16(b);
    parts.m = file_u16(b + 2);
    take_k_scales(b + 4, parts);
    const file_bytes qs = b + (Type == dtype::q4_k ? 16 : 48);
    for (int j = 0; j < 4; ++j) split_nibbles(qs + 32 * j, 32, parts.code + 64 * j);
    if constexpr (Type == dtype::q5_k)
      for (int j = 0; j < 8; ++j) merge_bits(b + 16, j, 1, 4, 32, parts.code + 32 * j);
  } else if constexpr (Type == dtype::q6_k) {
    for (int half = 0; half < 2; ++half) {
      std::uint8_t* const code = parts.code + 128 * half;
      split_nibbles(b + 64 * half, 64, code);
      for (int quarter = 0; quarter < 4; ++quarter)
        merge_bits(b + 128 + 32 * half, 2 * quarter, 3, 4, 32, code + 32 * quarter);
    }
    for (int j = 0; j < 16; ++j) parts.scale[j] = b[192 + j];
    parts.d = file_u16(b + 208);
  } else if constexpr (Type == dtype::iq4_xs) {
    parts.d = file_u16(b);
    for (int j = 0; j < 8; ++j) {
      const int low = b[4 + j / 2] >> (4 * (j % 2)) & 15;
      const int high = file_u16(b + 2) >> (2 * j) & 3;
      parts.scale[j] = static_cast<std::uint8_t>((low | high << 4) - 32);
      split_nibbles(b + 8 + 16 * j, 16, parts.code + 32 * j);
    }
  } else if constexpr (Type == dtype::q2_k || Type == dtype::q3_k) {
    const file_bytes qs = b + (Type == dtype::q2_k ? 16 : 32);
    std::memset(parts.code, 0, sizeof parts.code);
    for (int plane = 0; plane < 8; ++plane) {  // of 32 elements
      merge_bits(qs + 32 * (plane / 4), 2 * (plane % 4), 3, 0, 32, parts.code + 32 * plane);
      if constexpr (Type == dtype::q3_k) merge_bits(b, plane, 1, 2, 32, parts.code + 32 * plane);
    }
    if constexpr (Type == dtype::q2_k) {
      for (int j = 0; j < 16; ++j) parts.scale[j] = b[j];  // low nibble: scale, high nibble: minimum
      parts.d = file_u16(b + 80);
      parts.m = file_u16(b + 82);
    } else {
      for (int j = 0; j < 16; ++j) {
        const int low = j < 8 ? b[96 + j] & 15 : b[96 + j - 8] >> 4;
        const int high = b[104 + j % 4] >> (j / 4 * 2) & 3;
        parts.scale[j] = static_cast<std::uint8_t>((low | high << 4) - 32);
      }
      parts.d = file_u16(b + 108);
    }
  }
}

}  // namespace
}  // namespace flywheel::inline v0::kernels
