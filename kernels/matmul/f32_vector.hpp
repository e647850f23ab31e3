// The inner loop of products with f32 activations over `simd` vectors. Include after one simd_*.hpp.
#pragma once

#include "kernels/matmul/f32_product.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Vectors whose multiply-add takes a factor from any lane: rows share a load, and nothing is broadcast.
template <class S>
concept has_lanes = requires(typename S::floats x) {
  S::template fma_lane<0>(x, x, x);
};

/// Tiles of six rows by two vectors of columns: 12 accumulators, which leaves registers for weights and activations.
/// Where there are 32 registers two tiles at once, which halves the loads of weights.
template <class S>
struct f32_tiles {
  using V = typename S::floats;
  static constexpr std::int64_t panel_cols = 2 * S::width;
  static constexpr std::int64_t tile_rows = 6;
  static constexpr int tiles_at_once = S::registers >= 32 ? 2 : 1;

  template <dtype W>
  static V load(const std::byte* w, int v) {
    if constexpr (W == dtype::f32)
      return S::load(reinterpret_cast<const float*>(w) + v * S::width);
    else if constexpr (W == dtype::f16)
      return S::load_f16(w + v * S::width * 2);
    else
      return S::load_bf16(w + v * S::width * 2);
  }

  template <int R, int Row>
  [[gnu::always_inline]] static inline void rows(const float* x, V w0, V w1, V (*acc)[2]) {
    if constexpr (Row < R) {
      constexpr int together = R - Row < 4 ? R - Row : 4;
      lanes<together, 0>(S::template load_first<together>(x + Row), w0, w1, acc + Row);
      rows<R, Row + together>(x, w0, w1, acc);
    }
  }
  template <int N, int Lane>
  [[gnu::always_inline]] static inline void lanes(V a, V w0, V w1, V (*acc)[2]) {
    if constexpr (Lane < N) {
      acc[Lane][0] = S::template fma_lane<Lane>(w0, a, acc[Lane][0]);
      acc[Lane][1] = S::template fma_lane<Lane>(w1, a, acc[Lane][1]);
      lanes<N, Lane + 1>(a, w0, w1, acc);
    }
  }

  /// x: [Tiles][length][R], tiles `tile_stride` floats apart. One chain of fused multiply-adds over k per element,
  /// whatever R and Tiles.
  template <dtype W, int R, int Tiles = 1>
  static void multiply_chunk(const float* x, std::int64_t tile_stride, const std::byte* w, std::int64_t length,
                             float* sums, std::size_t ahead) {
    constexpr std::int64_t step = panel_cols * (W == dtype::f32 ? 4 : 2);
    V acc[Tiles * R][2];
#pragma GCC unroll 16
    for (int r = 0; r < Tiles * R; ++r) acc[r][0] = acc[r][1] = S::zero();
    for (std::int64_t k = 0; k < length; ++k, x += R, w += step) {
      if (ahead)
        for (std::int64_t line = 0; line < step; line += 64) {  // see prefetch_place
          S::prefetch(w + ahead + line);
          S::prefetch_far(w + 2 * ahead + line);
        }
      const V w0 = load<W>(w, 0);
      const V w1 = load<W>(w, 1);
      if constexpr (has_lanes<S>) {
#pragma GCC unroll 2
        for (int tile = 0; tile < Tiles; ++tile) rows<R, 0>(x + tile * tile_stride, w0, w1, acc + tile * R);
      } else {
#pragma GCC unroll 16
        for (int r = 0; r < Tiles * R; ++r) {
          const V a = S::set1(x[r / R * tile_stride + r % R]);
          acc[r][0] = S::fma(a, w0, acc[r][0]);
          acc[r][1] = S::fma(a, w1, acc[r][1]);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Tiles * R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        float* const to = sums + r * panel_cols + v * S::width;
        S::store(to, S::add(S::load(to), acc[r][v]));
      }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
