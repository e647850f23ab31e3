// Product of int8 activations with panels of block-quantized weights, for every cluster that has an int8 dot product.
// In an unnamed namespace: see f32_product.hpp.
//
// Activations are quantized in blocks of 32: q = round(x * 127 / max|x|), in [-127, 127], scale = max|x| / 127. For the
// rows of a tile (tile_rows, or those that are left) one block is
//   i32 sum[halves][rows]   -8 * sum of q, over 32 or, for weights with a scale per 16, over each 16
//   f32 scale[rows]
//   i8  q[8][rows][4]
// so that an int32 accumulator that starts at sum * (zero / 8) needs no correction for the weights' zero point.
#pragma once

#include "kernels/matmul/matmul.hpp"
#include "kernels/matmul/q_panels.hpp"
#include "kernels/matmul/tile_store.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Blocks whose largest magnitude is below this are taken as zero: 127 / max must stay finite.
constexpr float q8_smallest = 1e-30f;

/// Quantizes 32 numbers as row `r` of the `rows` of a tile block.
template <int Halves>
void quantize_block(const float* x, std::int64_t rows, std::int64_t r, std::byte* block) {
  std::uint32_t peak_bits = 0;
  for (int i = 0; i < 32; ++i) {  // compared as integers, NaN is the largest
    const std::uint32_t bits = bits_as<std::uint32_t>(x[i]) & 0x7fffffffu;
    peak_bits = bits > peak_bits ? bits : peak_bits;
  }
  const float peak = bits_as<float>(peak_bits);
  float scale = peak / 127;
  float inverse = 127 / peak;
  if (peak_bits >= 0x7f800000u) {  // infinity or NaN anywhere makes the row's results NaN
    scale = __builtin_nanf("");
    inverse = 0;
  } else if (peak < q8_smallest) {
    scale = inverse = 0;
  }
  std::int32_t q[32];
  for (int i = 0; i < 32; ++i)
    q[i] = bits_as<std::int32_t>(__builtin_fmaf(x[i], inverse, round_magic)) - bits_as<std::int32_t>(round_magic);
  if (inverse == 0)
    for (std::int32_t& one : q) one = 0;
  std::int32_t* const sums = reinterpret_cast<std::int32_t*>(block);
  for (int h = 0; h < Halves; ++h) {
    std::int32_t sum = 0;
    for (int i = 0; i < 32 / Halves; ++i) sum += q[32 / Halves * h + i];
    sums[h * rows + r] = -8 * sum;
  }
  reinterpret_cast<float*>(block)[Halves * rows + r] = scale;
  std::int8_t bytes[32];
  for (int i = 0; i < 32; ++i) bytes[i] = static_cast<std::int8_t>(q[i]);
  for (int s = 0; s < 8; ++s) __builtin_memcpy(sums + (Halves + 1 + s) * rows + r, bytes + 4 * s, 4);
}

/// -zero * sum(q) from -8 * sum(q): where an int32 accumulator starts.
template <class Panel, class S>
[[gnu::always_inline]] inline typename S::bytes start_sum(std::int32_t sum) {
  if constexpr (Panel::zero == 0)
    return S::set1_word(0);
  else
    return S::template scale_word<Panel::zero>(S::set1_word(sum));
}

/// Prefetches step Step's eighth of the lines of `Bytes` bytes at p. Called for all steps and blocks of a panel it
/// touches lines in the order of their addresses, whatever the order of the loads: hardware prefetchers then follow,
/// which a burst per block or two interleaved streams prevent (measured: a third of the bandwidth).
template <class S, std::size_t Bytes, int Step>
[[gnu::always_inline]] inline void prefetch_step(const std::byte* p) {
  constexpr std::size_t lines = (Bytes + 63) / 64;
#pragma GCC unroll 8
  for (std::size_t line = lines * Step / 8; line < lines * (Step + 1) / 8; ++line) S::prefetch(p + 64 * line);
}

/// Tiles supplies tile_rows and
///   template <class Panel, int R> static void multiply(const std::byte* panel, const std::byte* x, std::int64_t units,
///                                                      float* sums, std::size_t ahead)
///     sums[r][c] = the whole product of R prepared rows with a panel; may prefetch `ahead` bytes ahead in the panel.
template <class Panel, class Tiles>
struct q_product {
  static constexpr int halves = Panel::halves;
  static constexpr std::int64_t tile_rows = Tiles::tile_rows;
  /// Bytes of a block of 32 per row.
  static constexpr std::size_t block_bytes = (halves + 1) * 4 + 32;
  /// Panels that all rows are multiplied with before the next ones: about half of a usual L2 cache.
  static constexpr std::size_t panel_group_bytes = 512 * 1024;

  static std::size_t panel_bytes(std::int64_t k) {
    return round_up_64(static_cast<std::size_t>(k / Panel::elements) * Panel::unit_bytes);
  }

  static void pack(const std::byte* rows, std::size_t row_stride, std::int32_t cols, std::int64_t k, std::byte* panel) {
    for (std::int64_t unit = 0; unit < k / Panel::elements; ++unit, panel += Panel::unit_bytes)
      Panel::pack(rows + static_cast<std::size_t>(unit) * Panel::file_bytes_of_unit, row_stride, cols, panel);
  }

  static std::size_t row_bytes(std::int64_t k) { return static_cast<std::size_t>(k / 32) * block_bytes; }

  static std::size_t prepared_bytes(std::int64_t m, std::int64_t k) {
    return round_up_64(static_cast<std::size_t>(m) * row_bytes(k));
  }

  static void prepare(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
                      std::int64_t k, std::byte* out) {
    for (std::int64_t row = row_begin; row < row_end; row += tile_rows) {
      std::byte* const tile = out + static_cast<std::size_t>(row) * row_bytes(k);
      const std::int64_t rows = least(tile_rows, row_end - row);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t b = 0; b < k / 32; ++b)
          quantize_block<halves>(x + (row + r) * x_stride + 32 * b, rows, r,
                                 tile + static_cast<std::size_t>(b * rows) * block_bytes);
    }
  }

  static void run(const matmul_args& args) {
    alignas(64) float sums[tile_rows * Panel::cols];
    const std::size_t bytes = panel_bytes(args.k);
    const std::int64_t group_panels =
        bytes < panel_group_bytes ? static_cast<std::int64_t>(panel_group_bytes / bytes) : 1;
    const std::int64_t group = group_panels * Panel::cols;
    for (std::int64_t begin = 0; begin < args.n; begin += group) {
      std::size_t ahead = args.prefetch_bytes;
      for (std::int64_t row = args.row_begin; row < args.row_end; row += tile_rows, ahead = 0) {
        const std::int64_t rows = least(tile_rows, args.row_end - row);
        const std::byte* x = args.prepared + static_cast<std::size_t>(row) * row_bytes(args.k);
        for (std::int64_t col = begin; col < least(begin + group, args.n); col += Panel::cols) {
          const std::byte* panel = args.panels + static_cast<std::size_t>(col / Panel::cols) * bytes;
          multiply_rows(rows, panel, x, args.k / Panel::elements, sums, ahead);
          store_tile<Panel::cols>(args, row, row + rows, col, sums);
        }
      }
    }
  }

  static void multiply_rows(std::int64_t rows, const std::byte* panel, const std::byte* x, std::int64_t units,
                            float* sums, std::size_t ahead) {
    switch (rows) {
      case 1:
        return Tiles::template multiply<Panel, 1>(panel, x, units, sums, ahead);
      case 2:
        return Tiles::template multiply<Panel, 2>(panel, x, units, sums, ahead);
      case 3:
        return Tiles::template multiply<Panel, 3>(panel, x, units, sums, ahead);
      case 4:
        return Tiles::template multiply<Panel, 4>(panel, x, units, sums, ahead);
      default:
        break;
    }
    if constexpr (tile_rows > 4) {
      if (rows == 5) return Tiles::template multiply<Panel, 5>(panel, x, units, sums, ahead);
      return Tiles::template multiply<Panel, 6>(panel, x, units, sums, ahead);
    }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
