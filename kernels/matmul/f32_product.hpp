// Product with f32 activations, for every cluster: y = x w in f32, weights either plain numbers, converted in the inner
// loop, or blocks of any format, which the reference codec decodes panel chunk by panel chunk (they stay packed as in
// the file).
//
// Include this in the one source file of a cluster only: everything is in an unnamed namespace, so that each cluster
// has its own copy, compiled with its own instructions. `Simd` supplies
//   panel_cols, tile_rows, tiles_at_once
//   template <dtype W, int R, int Tiles = 1>
//   static void multiply_chunk(const float* x, std::int64_t tile_stride, const std::byte* w, std::int64_t length,
//                              float* sums, std::size_t ahead)
//     sums[r][c] += sum over k < length of x[k][r] * w[k][c], w of type W; may prefetch `ahead` bytes ahead of w
#pragma once

#include <cstring>

#include "flywheel/formats/formats.hpp"
#include "kernels/matmul/matmul.hpp"
#include "kernels/matmul/tile_store.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Sums run over this many products each and are then added up in order: a fixed order whatever the tiling, and a
/// smaller rounding error than one long sum.
constexpr std::int64_t f32_chunk = 256;
/// Rows that share one decoding of a chunk; a multiple of all tile_rows.
constexpr std::int64_t f32_row_group = 192;

/// Panel: chunk after chunk of up to 256 elements of K. A chunk of a plain type is [k][panel_cols], that of a quantized
/// format [panel_cols][the file's blocks, after the row's scale where it has one].
template <dtype Weight, class Simd>
struct f32_product {
  static constexpr dtype_info facts = *info(Weight);
  static constexpr bool plain = facts.kind == dtype_kind::real;
  static constexpr bool direct = Weight == dtype::f32 || Weight == dtype::f16 || Weight == dtype::bf16;
  static constexpr std::int64_t panel_cols = Simd::panel_cols;
  static constexpr std::int64_t tile_rows = Simd::tile_rows;
  static_assert(f32_row_group % tile_rows == 0 && f32_chunk % facts.block_elements == 0);

  static std::size_t bytes_of(std::int64_t elements) {
    return static_cast<std::size_t>(elements) / facts.block_elements * facts.block_bytes;
  }
  /// Of a chunk of one column: a row of its own, with the scale again where rows have one.
  static std::size_t chunk_bytes(std::int64_t elements) { return facts.header_bytes() + bytes_of(elements); }
  /// From a panel's start to the chunk that begins at k, a multiple of f32_chunk.
  static std::size_t chunk_at(std::int64_t k) {
    return static_cast<std::size_t>(k / f32_chunk) * chunk_bytes(f32_chunk) * panel_cols;
  }

  static std::size_t panel_bytes(std::int64_t k) {
    const std::int64_t rest = k % f32_chunk;
    return round_up_64(chunk_at(k) + (rest ? chunk_bytes(rest) * panel_cols : 0));
  }

  static void pack(const std::byte* rows, std::size_t row_stride, std::int32_t cols, std::int64_t k, std::byte* panel) {
    if constexpr (plain) {
      // Sixteen numbers of a row at a time: the lines they lie on and those they go to stay in L1, whatever the stride.
      constexpr std::int64_t step = 16;
      for (std::int64_t k0 = 0; k0 < k; k0 += step)
        for (std::int64_t c = 0; c < panel_cols; ++c) {
          const std::byte* from = rows + static_cast<std::size_t>(c) * row_stride + bytes_of(k0);
          std::byte* to = panel + bytes_of(k0 * panel_cols + c);
          for (std::int64_t i = 0; i < least(step, k - k0); ++i, to += bytes_of(panel_cols))
            if (c < cols)
              std::memcpy(to, from + bytes_of(i), facts.block_bytes);
            else
              std::memset(to, 0, facts.block_bytes);
        }
      return;
    }
    for (std::int64_t k0 = 0; k0 < k; k0 += f32_chunk) {
      constexpr std::size_t header = facts.header_bytes();
      const std::size_t size = bytes_of(least(f32_chunk, k - k0));
      for (std::int64_t c = 0; c < panel_cols; ++c, panel += header + size)
        if (c < cols) {
          const std::byte* const row = rows + static_cast<std::size_t>(c) * row_stride;
          std::memcpy(panel, row, header);
          std::memcpy(panel + header, row + header + bytes_of(k0), size);
        } else {
          std::memset(panel, 0, header + size);  // whatever zeros decode to: such columns are never stored
        }
    }
  }

  /// One chunk of a panel as f32 [length][panel_cols]; `tile` and `column` are room for it.
  static const std::byte* decode(const std::byte* from, std::int64_t length, formats::decode_fn decoder, float* tile,
                                 float* column) {
    if constexpr (plain) {
      decoder(from, length * panel_cols, tile);
    } else {
      for (std::int64_t c = 0; c < panel_cols; ++c, from += chunk_bytes(length)) {
        decoder(from, length, column);
        for (std::int64_t i = 0; i < length; ++i) tile[i * panel_cols + c] = column[i];
      }
    }
    return reinterpret_cast<const std::byte*>(tile);
  }

  /// Tiles of tile_rows rows, [k][tile_rows]; the last one has the rows that are left, [k][rows].
  static std::size_t prepared_bytes(std::int64_t m, std::int64_t k) {
    return round_up_64(static_cast<std::size_t>(m * k) * sizeof(float));
  }

  static void prepare(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
                      std::int64_t k, std::byte* out) {
    for (std::int64_t row = row_begin; row < row_end; row += tile_rows) {
      float* tile = reinterpret_cast<float*>(out) + row * k;
      const std::int64_t rows = least(tile_rows, row_end - row);
      if (rows == 1) {
        std::memcpy(tile, x + row * x_stride, static_cast<std::size_t>(k) * sizeof(float));
        continue;
      }
      for (std::int64_t i = 0; i < k; ++i)
        for (std::int64_t r = 0; r < rows; ++r) tile[i * rows + r] = x[(row + r) * x_stride + i];
    }
  }

  static void run(const matmul_args& args) {
    alignas(64) float sums[f32_row_group * panel_cols];
    alignas(64) float tile[direct ? 1 : f32_chunk * panel_cols];
    float column[plain ? 1 : f32_chunk];
    const formats::decode_fn decoder = direct ? nullptr : formats::find_decoder(Weight);
    const float* prepared = reinterpret_cast<const float*>(args.prepared);
    const std::byte* panel = args.panels;
    for (std::int64_t col = 0; col < args.n; col += panel_cols, panel += panel_bytes(args.k))
      for (std::int64_t begin = args.row_begin; begin < args.row_end; begin += f32_row_group) {
        const std::int64_t end = least(begin + f32_row_group, args.row_end);
        std::memset(sums, 0, static_cast<std::size_t>((end - begin) * panel_cols) * sizeof(float));
        for (std::int64_t k0 = 0; k0 < args.k; k0 += f32_chunk) {
          const std::int64_t length = least(f32_chunk, args.k - k0);
          const std::byte* w = panel + chunk_at(k0);
          std::size_t ahead = direct ? args.prefetch_bytes : 0;
          if constexpr (!direct) w = decode(w, length, decoder, tile, column);
          for (std::int64_t row = begin, rows; row < end; row += rows, ahead = 0) {
            rows = end - row;
            rows = least(rows < Simd::tiles_at_once * tile_rows ? tile_rows : Simd::tiles_at_once * tile_rows, rows);
            const float* x = prepared + row * args.k + k0 * least(tile_rows, rows);
            multiply_rows(rows, x, tile_rows * args.k, w, length, sums + (row - begin) * panel_cols, ahead);
          }
        }
        store_tile<panel_cols>(args, begin, end, col, sums);
      }
  }

  static void multiply_rows(std::int64_t rows, const float* x, std::int64_t tile_stride, const std::byte* w,
                            std::int64_t length, float* sums, std::size_t ahead) {
    constexpr dtype type = direct ? Weight : dtype::f32;
    if constexpr (Simd::tiles_at_once > 1)
      if (rows > tile_rows)
        return Simd::template multiply_chunk<type, tile_rows, Simd::tiles_at_once>(x, tile_stride, w, length, sums,
                                                                                   ahead);
    switch (rows) {
      case 1:
        return Simd::template multiply_chunk<type, 1>(x, tile_stride, w, length, sums, ahead);
      case 2:
        return Simd::template multiply_chunk<type, 2>(x, tile_stride, w, length, sums, ahead);
      case 3:
        return Simd::template multiply_chunk<type, 3>(x, tile_stride, w, length, sums, ahead);
      case 4:
        return Simd::template multiply_chunk<type, 4>(x, tile_stride, w, length, sums, ahead);
      default:
        break;
    }
    if constexpr (tile_rows > 4) {
      if (rows == 5) return Simd::template multiply_chunk<type, 5>(x, tile_stride, w, length, sums, ahead);
      return Simd::template multiply_chunk<type, 6>(x, tile_stride, w, length, sums, ahead);
    }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
