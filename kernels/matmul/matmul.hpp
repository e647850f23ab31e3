// Matrix product with packed weights:  y[i, j] = bias[j] + residual[i, j] + sum_k x[i, k] * w[j, k]
//
// Weights are packed once, at load, from the rows of the file's format into panels of `panel_cols` output columns that
// run along K. Activations are prepared once per product (quantized, or only re-ordered) in tiles of `tile_rows` rows
// and can be shared by all products whose kernels have the same `prepared` layout (QKV, gate and up).
//
// Row i of y depends on row i of x alone, and not on how many rows there are, how they are tiled or which thread does
// it: sums over k have one fixed order per kernel. This is what makes results independent of threads and batching.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "flywheel/core/dtype.hpp"
#include "kernels/cluster.hpp"

namespace flywheel::inline v0::kernels {

/// What happens to a finished sum before it is stored.
struct matmul_epilogue {
  const float* bias = nullptr;       ///< [n] counted from the first column of the call, or null.
  const float* residual = nullptr;   ///< [m, n] like y (same first row and column), or null. May alias y exactly.
  std::int64_t residual_stride = 0;  ///< Floats between rows of `residual`.
};

struct matmul_args {
  const std::byte* prepared = nullptr;  ///< Prepared activations of all rows, 64-byte aligned.
  std::int64_t row_begin = 0;           ///< First row to compute; a multiple of tile_rows.
  std::int64_t row_end = 0;             ///< One past the last row: a multiple of tile_rows, or all rows prepared.
  const std::byte* panels = nullptr;    ///< First weight panel of the call, 64-byte aligned.
  std::int64_t k = 0;                   ///< Length of a row: a multiple of the format's block (see exceeds_sums).
  std::int64_t n = 0;                   ///< Columns of the call: whole panels, the last one possibly partial.
  float* y = nullptr;                   ///< [row_begin.., n]: points at row `row_begin`, first column of the call.
  std::int64_t y_stride = 0;            ///< Floats between rows of y.
  /// How far ahead of the weights to prefetch into L1, and twice that into L2; 0: not at all. Never changes results.
  /// For weights that come from memory 4 to 16 KB are the useful range (measured on Zen 5 and Emerald Rapids); kernels
  /// of x86_zen4 prefetch only where products of several rows outlast memory.
  std::size_t prefetch_bytes = 8192;
  matmul_epilogue epilogue;  ///< Pointers as for y: at row `row_begin`, first column.
};

/// The code that stands for a weight of 0 in packed panels: w = scale * (code - zero), or, where a format has minima,
/// scale * code - minimum and 0. Prepared int8 activations carry the sums that it needs.
[[nodiscard]] constexpr std::int32_t zero_point(dtype weight) noexcept {
  switch (weight) {
    case dtype::q4_0:
    case dtype::q4_g128:
    case dtype::q4_channel:
      return 8;
    case dtype::q5_0:
    case dtype::mxfp4:
      return 16;
    case dtype::q8_0:
    case dtype::q8_g128:
    case dtype::q8_channel:
    case dtype::iq4_nl:
    case dtype::iq4_xs:
      return 128;
    case dtype::q3_k:
      return 4;
    case dtype::q6_k:
      return 32;
    default:
      return 0;
  }
}

/// How activations are laid out for a kernel: kernels with equal values share prepared activations.
struct prepared_layout {
  std::string_view name;  ///< "f32", "q8_block32", ...
  cluster isa;
  std::int32_t tile_rows;
  std::int32_t zero_point;  ///< Of the weights, for names that begin with q8; otherwise 0.
  friend bool operator==(const prepared_layout&, const prepared_layout&) = default;
};

/// Rows of weights with one scale (dtype_kind::row) are multiplied in int32 sums over the whole row, which hold so many
/// products of 127 by 128.
inline constexpr std::int64_t longest_channel_row = 131072;
[[nodiscard]] constexpr bool exceeds_sums(dtype weight, std::int64_t k) noexcept {
  const dtype_info* facts = info(weight);
  return facts && facts->kind == dtype_kind::row && k > longest_channel_row;
}

struct matmul_kernel {
  std::string_view name;  ///< matmul_<activation>_<weight>_<rows>x<cols>_<cluster>
  dtype weight;           ///< The file format it packs from.
  cluster isa;
  prepared_layout prepared;
  std::int32_t panel_cols;  ///< Output columns of a panel.
  /// Bytes of one panel for rows of length k, a multiple of 64.
  std::size_t (*panel_bytes)(std::int64_t k);
  /// Packs `cols` <= panel_cols rows of the file's format (row_stride bytes apart) into one panel; missing columns
  /// are zero.
  void (*pack)(const std::byte* rows, std::size_t row_stride, std::int32_t cols, std::int64_t k, std::byte* panel);
  /// Bytes of prepared activations of m rows.
  std::size_t (*prepared_bytes)(std::int64_t m, std::int64_t k);
  /// Prepares rows [row_begin, row_end) of x [m, k] (row_begin a multiple of tile_rows; row_end too unless it is m).
  /// `out` is the start of the whole prepared area. Calls for disjoint ranges may run at the same time.
  void (*prepare)(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end, std::int64_t k,
                  std::byte* out);
  void (*run)(const matmul_args& args);
};

}  // namespace flywheel::inline v0::kernels
