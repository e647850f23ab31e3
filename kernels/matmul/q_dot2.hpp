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
/// in L1. Three such tiles at once take one vector of columns at a time, which a third more rows share the unpacking
/// of.
template <class S>
struct dot2_tiles {
  using V = typename S::floats;
  using W = typename S::bytes;
  static constexpr std::int64_t tile_rows = 4;
  static constexpr int tiles_at_once = 3;

  /// Vectors [first, first + count) of a panel's columns for T tiles of R rows.
  template <class Panel_, int R_, int T_>
  struct shape {
    using Panel = Panel_;
    static constexpr int R = R_, T = T_, rows = R_ * T_, count = T_ == 1 ? 2 : 1;
    /// The codes of row r in a step; codes begin `head` bytes from x.
    [[gnu::always_inline]] static inline W activations(const tile_places<T>& x, std::size_t head, int step, int r) {
      return S::set1_word(reinterpret_cast<const std::int32_t*>(x.of[r / R] + head)[step * R + r % R]);
    }
  };
  template <class Shape>
  using sums_of = W[Shape::rows][Shape::count];

  /// Steps Step .. End - 1 into sums of two, 16 bits; the first one sets them.
  template <class Shape, int First, int Step, int End, bool Sets>
  [[gnu::always_inline]] static inline void small_steps(const std::byte* codes, const tile_places<Shape::T>& x,
                                                        std::size_t head, sums_of<Shape>& acc,
                                                        const prefetch_place& next) {
    using Panel = typename Shape::Panel;
    if constexpr (Step < End) {
      if constexpr (Shape::T == 1) prefetch_step<S, Panel::unit_bytes / Panel::blocks, Step>(next);
      W w[Shape::count];
#pragma GCC unroll 2
      for (int v = 0; v < Shape::count; ++v) w[v] = Panel::codes::template at<Step>(codes, First + v);
#pragma GCC unroll 16
      for (int r = 0; r < Shape::rows; ++r) {
        const W a = Shape::activations(x, head, Step, r);
#pragma GCC unroll 2
        for (int v = 0; v < Shape::count; ++v) {
          const W sums = S::dot2(w[v], a);
          acc[r][v] = Sets ? sums : S::add_halves(acc[r][v], sums);
        }
      }
      small_steps<Shape, First, Step + 1, End, false>(codes, x, head, acc, next);
    }
  }

  /// Steps Step .. End - 1 into int32 totals.
  template <class Shape, int First, int Step, int End>
  [[gnu::always_inline]] static inline void steps(const std::byte* codes, const tile_places<Shape::T>& x,
                                                  std::size_t head, sums_of<Shape>& total, const prefetch_place& next) {
    using Panel = typename Shape::Panel;
    if constexpr (Step < End && Panel::zero == 128) {
      if constexpr (Shape::T == 1) prefetch_step<S, Panel::unit_bytes / Panel::blocks, Step>(next);
      const W bit = S::set1_byte(0x80);
      W w[Shape::count], magnitude[Shape::count];
#pragma GCC unroll 2
      for (int v = 0; v < Shape::count; ++v) {
        w[v] = S::xor_bits(Panel::codes::template at<Step>(codes, First + v), bit);
        magnitude[v] = S::abs_bytes(w[v]);
      }
#pragma GCC unroll 16
      for (int r = 0; r < Shape::rows; ++r) {
        const W a = Shape::activations(x, head, Step, r);
#pragma GCC unroll 2
        for (int v = 0; v < Shape::count; ++v)
          total[r][v] = S::add_words(total[r][v], S::pair_sums(S::dot2(magnitude[v], S::sign_bytes(a, w[v]))));
      }
      steps<Shape, First, Step + 1, End>(codes, x, head, total, next);
    } else if constexpr (Step < End) {
      constexpr int together = 32767 / (2 * 127 * Panel::largest);
      static_assert(together >= 1);
      constexpr int stop = Step + together < End ? Step + together : End;
      sums_of<Shape> acc;
      small_steps<Shape, First, Step, stop, true>(codes, x, head, acc, next);
#pragma GCC unroll 16
      for (int r = 0; r < Shape::rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < Shape::count; ++v) total[r][v] = S::add_words(total[r][v], S::pair_sums(acc[r][v]));
      steps<Shape, First, stop, End>(codes, x, head, total, next);
    }
  }

  template <class Panel, class Scales, int R, int T = 1>
  static void multiply(const std::byte* panel, const std::byte* x, std::size_t tile_bytes, std::int64_t units,
                       float* sums, std::size_t ahead) {
    using Shape = shape<Panel, R, T>;
    const tile_places<T> tiles(x, tile_bytes);
    if constexpr (Scales::grouped) {
      multiply_groups<Shape, 0>(panel, tiles, units, sums, ahead);
      if constexpr (T > 1) multiply_groups<Shape, 1>(panel, tiles, units, sums, ahead);
    } else {
      multiply_blocks<Shape, Scales, 0>(panel, tiles, units, sums, ahead);
      if constexpr (T > 1) multiply_blocks<Shape, Scales, 1>(panel, tiles, units, sums, ahead);
    }
  }

  /// One int32 sum over each group.
  template <class Shape, int First>
  static void multiply_groups(const std::byte* panel, tile_places<Shape::T> x, std::int64_t units, float* sums,
                              std::size_t ahead) {
    using Panel = typename Shape::Panel;
    constexpr int R = Shape::R;
    const sum_groups<Panel> shape(units);
    for (std::int64_t group = 0; group < shape.groups; ++group) {
      const std::byte* const scales = panel;
      const weight_scales<Panel> d(panel);
      const std::size_t end = static_cast<std::size_t>(shape.blocks) * 32 * R;
      sums_of<Shape> acc;
#pragma GCC unroll 16
      for (int r = 0; r < Shape::rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < Shape::count; ++v)
          acc[r][v] =
              S::set1_word(Panel::zero == 128 ? 0 : reinterpret_cast<const std::int32_t*>(x.of[r / R] + end)[r % R]);
      panel += Panel::scale_bytes;
      for (std::int64_t block = 0; block < shape.blocks; ++block, panel += Panel::block_bytes, x.advance(32 * R))
        steps<Shape, First, 0, 8>(panel, x, 0, acc, {ahead ? scales + block_share<Panel>(block) : x.of[0], ahead});
#pragma GCC unroll 16
      for (int r = 0; r < Shape::rows; ++r) {
        const V scale = S::set1(reinterpret_cast<const float*>(x.of[r / R])[R + r % R]);
#pragma GCC unroll 2
        for (int v = 0; v < Shape::count; ++v) {
          float* const to = sums + (2 * r + First + v) * S::width;
          const V term = S::mul(S::mul(S::to_floats(acc[r][v]), d.at(First + v)), scale);
          S::store(to, group == 0 ? term : S::add(S::load(to), term));
        }
      }
      x.advance(8 * R);
    }
  }

  template <class Shape, class Scales, int First>
  static void multiply_blocks(const std::byte* panel, tile_places<Shape::T> x, std::int64_t units, float* sums,
                              std::size_t ahead) {
    using Panel = typename Shape::Panel;
    using scales = typename Panel::scales;
    constexpr int R = Shape::R, halves = Panel::halves, steps_of_half = 8 / halves;
    constexpr std::size_t head = (halves + 1) * 4 * R;
    const auto number = [&](int r, int i) __attribute__((always_inline)) {  // of the head of row r
      return S::set1(reinterpret_cast<const float*>(x.of[r / R])[i * R + r % R]);
    };
    const auto sum_of = [&](int r, int v) __attribute__((always_inline)) {
      return sums + (2 * r + First + v) * S::width;
    };
#pragma GCC unroll 16
    for (int r = 0; r < Shape::rows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < Shape::count; ++v) S::store(sum_of(r, v), S::zero());
    for (std::int64_t unit = 0; unit < units; ++unit, panel += Panel::unit_bytes) {
      alignas(64) float wide[scales::wide_floats + 1];
      scales::widen(panel, wide);
      const std::byte* at = panel + scales::unit_bytes;
      for (int block = 0; block < Panel::blocks; ++block, at += Panel::block_bytes) {
        const scale_place place = {panel, at, block, wide};
        const std::byte* const codes = at + scales::block_bytes;
        // With a share of the unit's scales; without prefetching the activations, which are in L1 anyway.
        const prefetch_place next = {
            ahead ? panel + static_cast<std::size_t>(block) * (Panel::unit_bytes / Panel::blocks) : x.of[0], ahead};
        V t[Shape::rows][Shape::count];  // the block's sum in units of the activations' scale
#pragma GCC unroll 2
        for (int half = 0; half < halves; ++half) {
          sums_of<Shape> total;
#pragma GCC unroll 16
          for (int r = 0; r < Shape::rows; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < Shape::count; ++v)
              total[r][v] = S::set1_word(start_of<Panel, Scales, R, Panel::zero == 128>(x.of[r / R], half, r % R));
          if (half == 0)
            steps<Shape, First, 0, steps_of_half>(codes, x, head, total, next);
          else
            steps<Shape, First, steps_of_half, 8>(codes, x, head, total, next);
#pragma GCC unroll 2
          for (int v = 0; v < Shape::count; ++v) {
            const V d = scales::scale(place, half, First + v);
            V m{};
            if constexpr (scales::has_minimum) m = scales::minimum(place, half, First + v);
#pragma GCC unroll 16
            for (int r = 0; r < Shape::rows; ++r) {
              if constexpr (Scales::powers) {
                float* const to = sum_of(r, v);
                V f = S::fma(S::sub(S::as_floats(total[r][v]), number(r, halves)), d, S::load(to));
                if constexpr (scales::has_minimum) f = S::fma(m, number(r, half), f);
                S::store(to, f);
              } else {
                const V s = S::to_floats(total[r][v]);
                t[r][v] = half == 0 ? S::mul(s, d) : S::fma(s, d, t[r][v]);
                if constexpr (scales::has_minimum) t[r][v] = S::fma(m, number(r, half), t[r][v]);
              }
            }
          }
        }
        if constexpr (!Scales::powers) {
#pragma GCC unroll 16
          for (int r = 0; r < Shape::rows; ++r) {
            const V a = number(r, halves);
#pragma GCC unroll 2
            for (int v = 0; v < Shape::count; ++v) {
              float* const to = sum_of(r, v);
              S::store(to, S::fma(t[r][v], a, S::load(to)));
            }
          }
        }
        x.advance(head + 32 * R);
      }
    }
    if constexpr (Scales::powers) {
#pragma GCC unroll 16
      for (int r = 0; r < Shape::rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < Shape::count; ++v) S::store(sum_of(r, v), S::mul(S::load(sum_of(r, v)), number(r, 0)));
    }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
