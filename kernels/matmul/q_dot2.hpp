// The inner loop of products with int8 activations where the instruction set multiplies unsigned by signed bytes into
// sums of two in 16 bits (AVX2 maddubs). Include after one simd_*.hpp that has dot2.
//
// Sums of two are at most 2 * 127 * largest code, so 32767 / (254 * largest) of them may be added up in 16 bits: 8 for
// codes up to 15 (30480: a whole block), 4 up to 31 (31496), 2 up to 63 (32004), so nothing ever saturates. Codes with
// zero point 128 become signed again, and |w| times a with w's sign is at most 2 * 128 * 127 = 32512; one such sum at a
// time.
#pragma once

#include "kernels/matmul/q_channel.hpp"
#include "kernels/matmul/q_product.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Four rows by two vectors of columns: eight accumulators, weights and a broadcast fit 16 registers; the f32 sums are
/// in L1.
template <class S>
struct dot2_tiles {
  using V = typename S::floats;
  using W = typename S::bytes;
  static constexpr std::int64_t tile_rows = 4;
  static constexpr int tiles_at_once = 1;

  /// Steps Step .. End - 1 into sums of two, 16 bits; the first one sets them.
  template <class Panel, int R, int Step, int End, bool First>
  [[gnu::always_inline]] static inline void small_steps(const std::byte* codes, const std::int32_t* q, W (&acc)[R][2],
                                                        const prefetch_place& next) {
    if constexpr (Step < End) {
      prefetch_step<S, Panel::unit_bytes / Panel::blocks, Step>(next);
      const W w[2] = {Panel::codes::template at<Step>(codes, 0), Panel::codes::template at<Step>(codes, 1)};
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const W a = S::set1_word(q[Step * R + r]);
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          const W sums = S::dot2(w[v], a);
          acc[r][v] = First ? sums : S::add_halves(acc[r][v], sums);
        }
      }
      small_steps<Panel, R, Step + 1, End, false>(codes, q, acc, next);
    }
  }

  /// Steps Step .. End - 1 into int32 totals.
  template <class Panel, int R, int Step, int End>
  [[gnu::always_inline]] static inline void steps(const std::byte* codes, const std::int32_t* q, W (&total)[R][2],
                                                  const prefetch_place& next) {
    if constexpr (Step < End && Panel::zero == 128) {
      prefetch_step<S, Panel::unit_bytes / Panel::blocks, Step>(next);
      const W bit = S::set1_byte(0x80);
      W w[2], magnitude[2];
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        w[v] = S::xor_bits(Panel::codes::template at<Step>(codes, v), bit);
        magnitude[v] = S::abs_bytes(w[v]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const W a = S::set1_word(q[Step * R + r]);
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v)
          total[r][v] = S::add_words(total[r][v], S::pair_sums(S::dot2(magnitude[v], S::sign_bytes(a, w[v]))));
      }
      steps<Panel, R, Step + 1, End>(codes, q, total, next);
    } else if constexpr (Step < End) {
      constexpr int together = 32767 / (2 * 127 * Panel::largest);
      static_assert(together >= 1);
      constexpr int stop = Step + together < End ? Step + together : End;
      W acc[R][2];
      small_steps<Panel, R, Step, stop, true>(codes, q, acc, next);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) total[r][v] = S::add_words(total[r][v], S::pair_sums(acc[r][v]));
      steps<Panel, R, stop, End>(codes, q, total, next);
    }
  }

  /// Whole rows: one int32 sum over all of K.
  template <class Panel, int R>
  static void multiply_whole(const std::byte* panel, const std::byte* x, std::int64_t units, float* sums,
                             std::size_t ahead) {
    const float* const d = reinterpret_cast<const float*>(panel);
    const std::int32_t* q = reinterpret_cast<const std::int32_t*>(x);
    const std::int32_t* const start = q + units * 8 * R;
    const float* const scale = reinterpret_cast<const float*>(start + R);
    W acc[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = S::set1_word(Panel::zero == 128 ? 0 : start[r]);
    panel += Panel::header_bytes;
    for (std::int64_t unit = 0; unit < units; ++unit, panel += Panel::unit_bytes, q += 8 * R)
      steps<Panel, R, 0, 8>(panel, q, acc, {ahead ? panel : x, ahead});
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v)
        S::store(sums + r * Panel::cols + v * S::width,
                 S::mul(S::mul(S::to_floats(acc[r][v]), S::load(d + v * S::width)), S::set1(scale[r])));
  }

  template <class Panel, class Scales, int R>
  static void multiply(const std::byte* panel, const std::byte* x, std::size_t, std::int64_t units, float* sums,
                       std::size_t ahead) {
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
#pragma GCC unroll 8
    for (int i = 0; i < 2 * R; ++i) S::store(sums + i * S::width, S::zero());
    for (std::int64_t unit = 0; unit < units; ++unit, panel += Panel::unit_bytes) {
      alignas(64) float wide[scales::wide_floats + 1];
      scales::widen(panel, wide);
      const std::byte* at = panel + scales::unit_bytes;
      for (int block = 0; block < Panel::blocks; ++block, at += Panel::block_bytes) {
        const scale_place place = {panel, at, block, wide};
        const std::byte* const codes = at + scales::block_bytes;
        // With a share of the unit's scales; without prefetching the activations, which are in L1 anyway.
        const prefetch_place next = {
            ahead ? panel + static_cast<std::size_t>(block) * (Panel::unit_bytes / Panel::blocks) : x, ahead};
        const float* const head = reinterpret_cast<const float*>(x);
        const float* const scale = head + halves * R;
        const std::int32_t* const q = reinterpret_cast<const std::int32_t*>(scale + R);
        V t[R][2];  // the block's sum in units of the activations' scale
#pragma GCC unroll 2
        for (int half = 0; half < halves; ++half) {
          W total[R][2];
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r)
            total[r][0] = total[r][1] = S::set1_word(start_of<Panel, Scales, R, Panel::zero == 128>(x, half, r));
          if (half == 0)
            steps<Panel, R, 0, steps_of_half>(codes, q, total, next);
          else
            steps<Panel, R, steps_of_half, 8>(codes, q, total, next);
#pragma GCC unroll 2
          for (int v = 0; v < 2; ++v) {
            const V d = scales::scale(place, half, v);
            V m{};
            if constexpr (scales::has_minimum) m = scales::minimum(place, half, v);
            if constexpr (Scales::powers) {
#pragma GCC unroll 8
              for (int r = 0; r < R; ++r) {
                float* const to = sums + (2 * r + v) * S::width;
                V f = S::fma(S::sub(S::as_floats(total[r][v]), S::set1(scale[r])), d, S::load(to));
                if constexpr (scales::has_minimum) f = S::fma(m, S::set1(head[half * R + r]), f);
                S::store(to, f);
              }
            } else {
#pragma GCC unroll 8
              for (int r = 0; r < R; ++r) {
                const V s = S::to_floats(total[r][v]);
                t[r][v] = half == 0 ? S::mul(s, d) : S::fma(s, d, t[r][v]);
              }
              if constexpr (scales::has_minimum) {
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) t[r][v] = S::fma(m, S::set1(head[half * R + r]), t[r][v]);
              }
            }
          }
        }
        if constexpr (!Scales::powers) {
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            const V a = S::set1(scale[r]);
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v) {
              float* const to = sums + (2 * r + v) * S::width;
              S::store(to, S::fma(t[r][v], a, S::load(to)));
            }
          }
        }
        x += ((halves + 1) * 4 + 32) * R;
      }
    }
    if constexpr (Scales::powers) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          float* const to = sums + (2 * r + v) * S::width;
          S::store(to, S::mul(S::load(to), S::set1(reinterpret_cast<const float*>(x)[r])));
        }
    }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
