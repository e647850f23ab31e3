// The inner loop of products with f32 activations over `simd` vectors. Include after one simd_*.hpp.
#pragma once

#include "kernels/matmul/f32_product.hpp"

namespace flywheel::inline v0::kernels {
namespace {

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
#pragma GCC unroll 16
      for (int r = 0; r < Tiles * R; ++r) {
        const V a = S::set1(x[r / R * tile_stride + r % R]);
        acc[r][0] = S::fma(a, w0, acc[r][0]);
        acc[r][1] = S::fma(a, w1, acc[r][1]);
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
