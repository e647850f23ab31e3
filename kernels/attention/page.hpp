// How a page of the KV cache is laid out. A page of one layer holds kv_page_tokens positions: the keys of all kv heads,
// then the values of all kv heads. What a head has of either is a few lines, each with the same number of bytes for
// every position, in order of position:
//
//          keys                                        values
//   f16    head_dim lines of one number                one line of head_dim numbers
//   f32    the same                                    the same
//   q8_0   head_dim / 4 lines of 4 codes + 128,        one line of head_dim codes,
//          head_dim / 32 lines of one f16 scale        head_dim / 32 lines of one f16 scale
//   q4_0   head_dim / 32 * 5 lines of 4 bytes,         one line of head_dim / 2 bytes of codes,
//          head_dim / 32 lines of one f16 scale        head_dim / 32 lines of one f16 scale
//
// Keys are transposed, so that scores of neighbouring positions are computed in neighbouring lanes; four codes together
// are what integer dot products take. Blocks of 32 along head_dim are those of formats/q8_0.hpp and q4_0.hpp: bytes
// 4 i .. 4 i + 3 of a block are in its i-th line.
//
// Quantized pages hold rotated heads (rotation.hpp). Errors of keys move scores and cost more than those of values, so
// keys of q4_0 have a fifth bit, which makes 5 bits for a number on average: their blocks are those of
// formats/q5_0.hpp, 4 lines of low bits like values' codes, and a line of fifth bits: that of number 4 i + j is bit i
// of byte j.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flywheel/core/dtype.hpp"
#include "flywheel/core/ops.hpp"

namespace flywheel::inline v0::kernels {

/// Tokens per KV page.
using flywheel::kv_page_tokens;

/// Added to the codes of q8_0 keys, which makes them unsigned.
inline constexpr int kv_key_bias = 128;

// Static functions: a kernel's object file must not share symbols with another's.

/// Bytes of 32 numbers of values; 0 for what pages cannot hold.
static constexpr std::size_t kv_block_bytes(dtype type) noexcept {
  return type == dtype::f32 ? 128 : type == dtype::f16 ? 64 : type == dtype::q8_0 ? 34 : type == dtype::q4_0 ? 18 : 0;
}
/// Bytes of 32 numbers of keys.
static constexpr std::size_t kv_key_block_bytes(dtype type) noexcept {
  return kv_block_bytes(type) + (type == dtype::q4_0 ? 4 : 0);
}
static constexpr bool is_quantized_kv(dtype type) noexcept { return type == dtype::q8_0 || type == dtype::q4_0; }
/// head_dim must be a multiple of this.
static constexpr std::int64_t kv_granularity(dtype type) noexcept { return is_quantized_kv(type) ? 32 : 8; }

/// Bytes of the keys, and of the values, of one head in a page.
static constexpr std::size_t kv_keys_bytes(dtype type, std::int64_t head_dim) noexcept {
  return static_cast<std::size_t>(kv_page_tokens * head_dim) / 32 * kv_key_block_bytes(type);
}
static constexpr std::size_t kv_values_bytes(dtype type, std::int64_t head_dim) noexcept {
  return static_cast<std::size_t>(kv_page_tokens * head_dim) / 32 * kv_block_bytes(type);
}
/// Bytes of one page of one layer.
static constexpr std::size_t kv_page_bytes(dtype type, std::int64_t n_kv_heads, std::int64_t head_dim) noexcept {
  return static_cast<std::size_t>(n_kv_heads) * (kv_keys_bytes(type, head_dim) + kv_values_bytes(type, head_dim));
}
/// Where a head's keys and values begin in a page.
static constexpr std::size_t kv_keys_offset(dtype type, std::int64_t head_dim, std::int64_t kv_head) noexcept {
  return static_cast<std::size_t>(kv_head) * kv_keys_bytes(type, head_dim);
}
static constexpr std::size_t kv_values_offset(dtype type, std::int64_t n_kv_heads, std::int64_t head_dim,
                                              std::int64_t kv_head) noexcept {
  return static_cast<std::size_t>(n_kv_heads) * kv_keys_bytes(type, head_dim) +
         static_cast<std::size_t>(kv_head) * kv_values_bytes(type, head_dim);
}

/// `count` lines of kv_page_tokens * position_bytes each.
struct kv_lines {
  std::size_t count = 0;
  std::size_t position_bytes = 0;
};
/// One head's keys or values: numbers or codes, then scales (none for f16 and f32).
struct kv_head_lines {
  kv_lines numbers, scales;
};

static constexpr kv_head_lines kv_key_lines(dtype type, std::int64_t head_dim) noexcept {
  const std::size_t dim = static_cast<std::size_t>(head_dim), block = kv_key_block_bytes(type);
  if (is_quantized_kv(type)) return {{dim / 32 * (block - 2) / 4, 4}, {dim / 32, 2}};
  return {{dim, block / 32}, {}};
}
static constexpr kv_head_lines kv_value_lines(dtype type, std::int64_t head_dim) noexcept {
  const std::size_t dim = static_cast<std::size_t>(head_dim), block = kv_block_bytes(type);
  if (is_quantized_kv(type)) return {{1, dim / 32 * (block - 2)}, {dim / 32, 2}};
  return {{1, dim * block / 32}, {}};
}

}  // namespace flywheel::inline v0::kernels
