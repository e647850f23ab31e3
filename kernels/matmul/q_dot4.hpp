// The inner loop of products with int8 activations where the instruction set has a four-way dot product of unsigned by
// signed bytes into 32 bits (VNNI). Include after one simd_*.hpp that has dot4.
#pragma once

#include "kernels/matmul/q_channel.hpp"
#include "kernels/matmul/q_product.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Six rows by two vectors of columns: 12 int32 and 12 f32 accumulators, the weights and one broadcast fit 32
/// registers.
template <class S>
struct dot4_tiles {
  using V = typename S::floats;
  using W = typename S::bytes;
  static constexpr std::int64_t tile_rows = 6;

  /// Steps Step .. End - 1: acc[r][v] += four products each.
  template <class Panel, int R, int Step, int End>
  [[gnu::always_inline]] static inline void steps(const std::byte* codes, const std::int32_t* q, W (&acc)[R][2],
                                                  const std::byte* next) {
    if constexpr (Step < End) {
      prefetch_step<S, Panel::unit_bytes / Panel::blocks, Step>(next);
      const W w0 = Panel::codes::template at<Step>(codes, 0);
      const W w1 = Panel::codes::template at<Step>(codes, 1);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const W a = S::set1_word(q[Step * R + r]);
        acc[r][0] = S::dot4(acc[r][0], w0, a);
        acc[r][1] = S::dot4(acc[r][1], w1, a);
      }
      steps<Panel, R, Step + 1, End>(codes, q, acc, next);
    }
  }

  /// Whole rows: one int32 sum over all of K.
  template <class Panel, int R>
  static void multiply_whole(const std::byte* panel, const std::byte* x, std::int64_t units, float* sums,
                             std::size_t ahead) {
    const float* const d = reinterpret_cast<const float*>(panel);
    const std::int32_t* q = reinterpret_cast<const std::int32_t*>(x);
    const std::int32_t* const sum = q + units * 8 * R;
    const float* const scale = reinterpret_cast<const float*>(sum + R);
    W acc[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = start_sum<Panel, S>(sum[r]);
    panel += Panel::header_bytes;
    for (std::int64_t unit = 0; unit < units; ++unit, panel += Panel::unit_bytes, q += 8 * R)
      steps<Panel, R, 0, 8>(panel, q, acc, ahead ? panel + ahead : x);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v)
        S::store(sums + r * Panel::cols + v * S::width,
                 S::mul(S::mul(S::to_floats(acc[r][v]), S::load(d + v * S::width)), S::set1(scale[r])));
  }

  template <class Panel, class Scales, int R>
  static void multiply(const std::byte* panel, const std::byte* x, std::int64_t units, float* sums, std::size_t ahead) {
    if constexpr (Scales::whole_rows) {
      multiply_whole<Panel, R>(panel, x, units, sums, ahead);
    } else {
      multiply_blocks<Panel, Scales, R>(panel, x, units, sums, ahead);
    }
  }

  template <class Panel, class Scales, int R>
  static void multiply_blocks(const std::byte* panel, const std::byte* x, std::int64_t units, float* sums,
                              std::size_t ahead) {
    using scales = typename Panel::scales;
    constexpr int halves = Panel::halves;
    constexpr int steps_of_half = 8 / halves;
    V f[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) f[r][0] = f[r][1] = S::zero();
    for (std::int64_t unit = 0; unit < units; ++unit, panel += Panel::unit_bytes) {
      alignas(64) float wide[scales::wide_floats + 1];
      scales::widen(panel, wide);
      const std::byte* at = panel + scales::unit_bytes;
      for (int block = 0; block < Panel::blocks; ++block, at += Panel::block_bytes) {
        const scale_place place = {panel, at, block, wide};
        const std::byte* const codes = at + scales::block_bytes;
        // With a share of the unit's scales; without prefetching the activations, which are in L1 anyway.
        const std::byte* const next =
            ahead ? panel + ahead + static_cast<std::size_t>(block) * (Panel::unit_bytes / Panel::blocks) : x;
        const std::int32_t* const sum = reinterpret_cast<const std::int32_t*>(x);
        const std::int32_t* const scale = sum + halves * R;
        const std::int32_t* const q = sum + (halves + 1) * R;
        V t[R][2];  // the block's sum in units of the activations' scale
#pragma GCC unroll 2
        for (int half = 0; half < halves; ++half) {
          W acc[R][2];
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = start_sum<Panel, S>(sum[half * R + r]);
          if (half == 0)
            steps<Panel, R, 0, steps_of_half>(codes, q, acc, next);
          else
            steps<Panel, R, steps_of_half, 8>(codes, q, acc, next);
          if constexpr (Scales::powers) {
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v) {
              const V d = scales::scale(place, half, v);
#pragma GCC unroll 8
              for (int r = 0; r < R; ++r)
                f[r][v] = S::fma(S::to_floats(acc[r][v]), raised<Panel, S>(d, scale[r]), f[r][v]);
            }
            if constexpr (scales::has_minimum) {
              const V m[2] = {scales::minimum(place, half, 0), scales::minimum(place, half, 1)};
#pragma GCC unroll 8
              for (int r = 0; r < R; ++r) {
                const V s = S::add_exponent(S::to_floats(S::set1_word(sum[half * R + r])), S::set1_word(scale[r]));
                f[r][0] = S::fma(m[0], s, f[r][0]);
                f[r][1] = S::fma(m[1], s, f[r][1]);
              }
            }
          } else {
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v) {
              const V d = scales::scale(place, half, v);
#pragma GCC unroll 8
              for (int r = 0; r < R; ++r) {
                const V s = S::to_floats(acc[r][v]);
                t[r][v] = half == 0 ? S::mul(s, d) : S::fma(s, d, t[r][v]);
              }
              if constexpr (scales::has_minimum) {
                const V m = scales::minimum(place, half, v);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) t[r][v] = S::fma(m, S::to_floats(S::set1_word(sum[half * R + r])), t[r][v]);
              }
            }
          }
        }
        if constexpr (!Scales::powers) {
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            const V a = S::set1(bits_as<float>(scale[r]));
            f[r][0] = S::fma(t[r][0], a, f[r][0]);
            f[r][1] = S::fma(t[r][1], a, f[r][1]);
          }
        }
        x += ((halves + 1) * 4 + 32) * R;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if constexpr (Scales::powers) {
        const V own = S::set1(reinterpret_cast<const float*>(x)[r]);
        f[r][0] = S::mul(f[r][0], own);
        f[r][1] = S::mul(f[r][1], own);
      }
      S::store(sums + r * Panel::cols, f[r][0]);
      S::store(sums + r * Panel::cols + S::width, f[r][1]);
    }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
