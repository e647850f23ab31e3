// Products with the factors of a low-rank change B A of a weight, with few rows in A:
//
//     project   u[i, j] = scale * sum_k A[j, k] x[i, k]
//     expand    y[i, c] += sum_j B[c, j] u[i, j],  j in ascending order
//
// Each number depends on its own row i alone, and not on how many rows, ranks or columns a call has: sums have one
// fixed order per cluster. Factors are f32, f16 or bf16, and are widened when they are read.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flywheel/core/dtype.hpp"

namespace flywheel::inline v0::kernels {

/// Columns of B that lie together: B is [blocks of columns][rank][column of the block], so that any range of columns
/// reads memory in order. Columns behind the last one are zeros.
inline constexpr std::int64_t low_rank_block = 16;

/// Bytes of a number of a factor.
[[nodiscard]] constexpr std::size_t low_rank_size(dtype type) noexcept { return type == dtype::f32 ? 4 : 2; }

/// Bytes from one row of A to the next: whole cache lines filled up with zeros, an odd number of them, so that rows of
/// 2^n numbers do not compete for the same set of the L1 cache.
[[nodiscard]] constexpr std::size_t low_rank_stride(dtype type, std::int64_t k) noexcept {
  return ((static_cast<std::size_t>(k) * low_rank_size(type) + 63) / 64 | 1) * 64;
}

struct project_args {
  dtype type = dtype::f32;
  const std::byte* a = nullptr;  ///< [ranks, k], rows low_rank_stride apart.
  std::int64_t ranks = 0;
  std::int64_t k = 0;
  const float* x = nullptr;  ///< [rows, k]
  std::int64_t x_stride = 0;
  std::int64_t rows = 0;
  float scale = 1;
  float* u = nullptr;  ///< [rows, ranks]
  std::int64_t u_stride = 0;
};
using project_fn = void (*)(const project_args& args);

struct expand_args {
  dtype type = dtype::f32;
  const std::byte* b = nullptr;  ///< [blocks, rank, low_rank_block]: from its column 0 on.
  std::int64_t rank = 0;
  const float* u = nullptr;  ///< [rows, rank]
  std::int64_t u_stride = 0;
  std::int64_t rows = 0;
  std::int64_t begin = 0, end = 0;  ///< Columns of B.
  float* y = nullptr;               ///< [rows, end - begin]
  std::int64_t y_stride = 0;
};
using expand_fn = void (*)(const expand_args& args);

}  // namespace flywheel::inline v0::kernels
