// Low-rank products over `simd` vectors. Include after one simd_*.hpp.
#pragma once

#include "kernels/low_rank/low_rank.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class S>
struct low_rank {
  using V = typename S::floats;
  static constexpr int tile_rows = S::registers == 32 ? 3 : 1;  ///< 3 x 8 sums are in registers.
  static constexpr int tile_ranks = 8;
  static constexpr std::int64_t ahead = 1024;  ///< Bytes of each row of A that are fetched before they are needed.

  static constexpr std::int64_t columns_ahead = 2048;  ///< The same of B.

  template <dtype T>
  static V factor(const std::byte* p, std::int64_t i) {
    if constexpr (T == dtype::f16)
      return S::load_f16(p + 2 * i);
    else if constexpr (T == dtype::bf16)
      return S::load_bf16(p + 2 * i);
    else
      return S::load(reinterpret_cast<const float*>(p) + i);
  }

  /// One vector of k for every sum of a tile; x has `left` numbers.
  template <dtype T, int Rows, int Ranks>
  [[gnu::always_inline]] static inline void step(V (&sums)[Rows][Ranks], const std::byte* a, std::size_t a_stride,
                                                 const float* x, std::int64_t x_stride, std::int64_t i,
                                                 std::int64_t left) {
    V v[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
      v[r] = left >= S::width ? S::load(x + r * x_stride + i) : S::load_part(x + r * x_stride + i, left);
#pragma GCC unroll 8
    for (int j = 0; j < Ranks; ++j) {
      const V w = factor<T>(a + static_cast<std::size_t>(j) * a_stride, i);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) sums[r][j] = S::fma(w, v[r], sums[r][j]);
    }
  }

  /// One chain of multiply-adds for each sum, in order of k, whatever the tile.
  template <dtype T, int Rows, int Ranks>
  static void tile(const project_args& p, std::int64_t row, std::int64_t rank) {
    constexpr auto line = static_cast<std::int64_t>(64 / low_rank_size(T));
    const std::size_t stride = low_rank_stride(T, p.k);
    const std::byte* a = p.a + static_cast<std::size_t>(rank) * stride;
    const float* x = p.x + row * p.x_stride;
    V sums[Rows][Ranks];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < Ranks; ++j) sums[r][j] = S::zero();
    std::int64_t i = 0;
    for (; i + line <= p.k; i += line) {
      if (Rows == 1)  // else A comes from a cache
#pragma GCC unroll 8
        for (int j = 0; j < Ranks; ++j) S::prefetch(a + static_cast<std::size_t>(j) * stride + i * (64 / line) + ahead);
      for (std::int64_t at = i; at < i + line; at += S::width)
        step<T, Rows, Ranks>(sums, a, stride, x, p.x_stride, at, S::width);
    }
    for (; i < p.k; i += S::width) step<T, Rows, Ranks>(sums, a, stride, x, p.x_stride, i, p.k - i);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < Ranks; ++j) p.u[(row + r) * p.u_stride + rank + j] = S::sum(sums[r][j]) * p.scale;
  }

  template <dtype T, int Ranks>
  static void rows(const project_args& p, std::int64_t rank) {
    std::int64_t row = 0;
    if constexpr (tile_rows > 1)
      for (; row + tile_rows <= p.rows; row += tile_rows) tile<T, tile_rows, Ranks>(p, row, rank);
    for (; row < p.rows; ++row) tile<T, 1, Ranks>(p, row, rank);
  }

  template <dtype T>
  static void project_as(const project_args& p) {
    std::int64_t rank = 0;
    for (; rank + tile_ranks <= p.ranks; rank += tile_ranks) rows<T, tile_ranks>(p, rank);
    for (; rank + 2 <= p.ranks; rank += 2) rows<T, 2>(p, rank);
    if (rank < p.ranks) rows<T, 1>(p, rank);
  }

  static void project(const project_args& p) {
    if (p.type == dtype::f16)
      project_as<dtype::f16>(p);
    else if (p.type == dtype::bf16)
      project_as<dtype::bf16>(p);
    else
      project_as<dtype::f32>(p);
  }

  /// y += B u for up to a vector of columns and Ranks ranks, which stay in registers while all rows pass.
  template <dtype T, int Ranks>
  static void columns(const expand_args& e, const std::byte* b, std::int64_t rank, std::int64_t at, std::int64_t n) {
    constexpr std::size_t size = low_rank_size(T);
    V w[Ranks];
#pragma GCC unroll 8
    for (int j = 0; j < Ranks; ++j) w[j] = factor<T>(b + static_cast<std::size_t>(rank + j) * low_rank_block * size, 0);
    for (std::int64_t r = 0; r < e.rows; ++r) {
      float* y = e.y + r * e.y_stride + at;
      const float* u = e.u + r * e.u_stride + rank;
      V sum = n == S::width ? S::load(y) : S::load_part(y, n);
#pragma GCC unroll 8
      for (int j = 0; j < Ranks; ++j) sum = S::fma(w[j], S::set1(u[j]), sum);
      n == S::width ? S::store(y, sum) : S::store_part(y, n, sum);
    }
  }

  template <dtype T>
  static void expand_as(const expand_args& e) {
    constexpr auto size = static_cast<std::int64_t>(low_rank_size(T));
    for (std::int64_t c = e.begin; c < e.end;) {
      const std::int64_t lane = c % low_rank_block, within = low_rank_block - lane;
      // Vectors end with their block. A load may read into the next rank, and the last one into the room behind B.
      std::int64_t n = within < S::width ? within : S::width;
      n = e.end - c < n ? e.end - c : n;
      const std::byte* b = e.b + (c / low_rank_block * e.rank * low_rank_block + lane) * size;
      if (e.rows == 1)
        for (std::int64_t line = 0; line < e.rank * n * size; line += 64) S::prefetch(b + line + columns_ahead);
      const std::int64_t at = c - e.begin;
      std::int64_t rank = 0;
      for (; rank + 8 <= e.rank; rank += 8) columns<T, 8>(e, b, rank, at, n);
      for (; rank + 2 <= e.rank; rank += 2) columns<T, 2>(e, b, rank, at, n);
      if (rank < e.rank) columns<T, 1>(e, b, rank, at, n);
      c += n;
    }
  }

  static void expand(const expand_args& e) {
    if (e.type == dtype::f16)
      expand_as<dtype::f16>(e);
    else if (e.type == dtype::bf16)
      expand_as<dtype::bf16>(e);
    else
      expand_as<dtype::f32>(e);
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
