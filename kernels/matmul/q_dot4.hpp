// The inner loop of products with int8 activations where the instruction set has a four-way dot product of unsigned by
// signed bytes into 32 bits (VNNI). Include after one simd_*.hpp that has dot4.
#pragma once

#include "kernels/matmul/q_channel.hpp"
#include "kernels/matmul/q_product.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Six rows by two vectors of columns: 12 int32 and 12 f32 accumulators, the weights and one broadcast fit 32
/// registers. Two such tiles at once halve what unpacking codes and loading weights costs per product; their f32 sums
/// are in L1. Sums are the same either way.
/// A panel is prefetched if its block of 32 has at most PrefetchBytes per row.
template <class S, int AtOnce, std::size_t PrefetchBytes = 65536>
struct dot4_tiles {
  using V = typename S::floats;
  using W = typename S::bytes;
  static constexpr std::int64_t tile_rows = 6;
  static constexpr int tiles_at_once = AtOnce;

  /// Steps Step .. End - 1: acc[r][v] += four products each. The codes of the block begin `head` bytes from x.
  template <class Panel, int R, int T, int Step, int End>
  [[gnu::always_inline]] static inline void steps(const std::byte* codes, const tile_places<T>& x, std::size_t head,
                                                  W (&acc)[R * T][2], const prefetch_place& next) {
    if constexpr (Step < End) {
      constexpr std::size_t bytes = Panel::unit_bytes / Panel::blocks;
      if constexpr (bytes <= R * T * PrefetchBytes) prefetch_step<S, bytes, Step>(next);
      const W w0 = Panel::codes::template at<Step>(codes, 0);
      const W w1 = Panel::codes::template at<Step>(codes, 1);
#pragma GCC unroll 16
      for (int r = 0; r < R * T; ++r) {
        const W a = S::set1_word(reinterpret_cast<const std::int32_t*>(x.of[r / R] + head)[Step * R + r % R]);
        acc[r][0] = S::dot4(acc[r][0], w0, a);
        acc[r][1] = S::dot4(acc[r][1], w1, a);
      }
      steps<Panel, R, T, Step + 1, End>(codes, x, head, acc, next);
    }
  }

  template <class Panel, class Scales, int R, int T = 1>
  static void multiply(const std::byte* panel, const std::byte* x, std::size_t tile_bytes, std::int64_t units,
                       float* sums, std::size_t ahead) {
    if constexpr (Scales::grouped) {
      multiply_groups<Panel, R, T>(panel, tile_places<T>(x, tile_bytes), units, sums, ahead);
    } else {
      multiply_blocks<Panel, Scales, R, T>(panel, tile_places<T>(x, tile_bytes), units, sums, ahead);
    }
  }

  /// The f32 sums of N rows, in registers, or where those do not suffice in memory.
  template <int N, bool Registers>
  struct totals {
    V f[Registers ? N : 1][2];
    float* sums;
    totals(float* to, V start) : sums(to) {
#pragma GCC unroll 16
      for (int r = 0; r < N; ++r) set(r, 0, start), set(r, 1, start);
    }
    void store() const {
      if constexpr (Registers)
#pragma GCC unroll 16
        for (int r = 0; r < N; ++r)
#pragma GCC unroll 2
          for (int v = 0; v < 2; ++v) S::store(sums + (2 * r + v) * S::width, f[r][v]);
    }
    /// Sums in memory stay there: compilers would hold some in registers, and spill accumulators for them.
    [[gnu::always_inline]] inline void settle() {
      if constexpr (!Registers) asm volatile("" : "+r"(sums) : : "memory");
    }
    [[gnu::always_inline]] inline V get(int r, int v) const {
      return Registers ? f[r][v] : S::load(sums + (2 * r + v) * S::width);
    }
    [[gnu::always_inline]] inline void set(int r, int v, V x) {
      if constexpr (Registers)
        f[r][v] = x;
      else
        S::store(sums + (2 * r + v) * S::width, x);
    }
  };

  /// One int32 sum over each group.
  template <class Panel, int R, int T>
  static void multiply_groups(const std::byte* panel, tile_places<T> x, std::int64_t units, float* sums,
                              std::size_t ahead) {
    const sum_groups<Panel> shape(units);
    totals<R * T, T == 1> f(sums, S::set1(-0.0F));  // which changes nothing, not even the sign of a zero
    for (std::int64_t group = 0; group < shape.groups; ++group) {
      const std::byte* const scales = panel;
      const std::size_t end = static_cast<std::size_t>(shape.blocks) * 32 * R;
      const weight_scales<Panel> d(panel);
      const tile_places<T> twin = x.again();
      W acc[R * T][2];
#pragma GCC unroll 16
      for (int r = 0; r < R * T; ++r) {
        acc[r][0] = S::set1_word(reinterpret_cast<const std::int32_t*>(x.of[r / R] + end)[r % R]);
        acc[r][1] = S::set1_word(reinterpret_cast<const std::int32_t*>(twin.of[r / R] + end)[r % R]);
      }
      panel += Panel::scale_bytes;
      for (std::int64_t block = 0; block < shape.blocks; ++block, panel += Panel::block_bytes, x.advance(32 * R)) {
        const prefetch_place next = {ahead ? scales + block_share<Panel>(block) : x.of[0], ahead};
        steps<Panel, R, T, 0, 8>(panel, x, 0, acc, next);
#pragma GCC unroll 16
        for (int r = 0; r < R * T; ++r)
#pragma GCC unroll 2
          for (int v = 0; v < 2; ++v) acc[r][v] = S::keep(acc[r][v]);
      }
      f.settle();
#pragma GCC unroll 16
      for (int r = 0; r < R * T; ++r) {
        const V scale = S::set1(reinterpret_cast<const float*>(x.of[r / R])[R + r % R]);
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v)
          f.set(r, v, S::add(f.get(r, v), S::mul(S::mul(S::to_floats(acc[r][v]), d.at(v)), scale)));
      }
      x.advance(8 * R);
    }
    f.store();
  }

  template <class Panel, class Scales, int R, int T>
  static void multiply_blocks(const std::byte* panel, tile_places<T> x, std::int64_t units, float* sums,
                              std::size_t ahead) {
    using scales = typename Panel::scales;
    constexpr int halves = Panel::halves;
    constexpr int steps_of_half = 8 / halves;
    constexpr std::size_t head = (halves + 1) * 4 * R;
    const auto number =
        [](const tile_places<T>& from, int r, int i) __attribute__((always_inline)) {  // of the head of row r
      return S::set1(reinterpret_cast<const float*>(from.of[r / R])[i * R + r % R]);
    };
    totals<R * T, T == 1> f(sums, S::zero());
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
        V t[Scales::powers ? 1 : R * T][2];  // the block's sum in units of the activations' scale
#pragma GCC unroll 2
        for (int half = 0; half < halves; ++half) {
          const tile_places<T> twin = x.again();
          W acc[R * T][2];
#pragma GCC unroll 16
          for (int r = 0; r < R * T; ++r) {
            acc[r][0] = S::set1_word(start_of<Panel, Scales, R>(x.of[r / R], half, r % R));
            acc[r][1] = S::set1_word(start_of<Panel, Scales, R>(twin.of[r / R], half, r % R));
          }
          if (half == 0)
            steps<Panel, R, T, 0, steps_of_half>(codes, x, head, acc, next);
          else
            steps<Panel, R, T, steps_of_half, 8>(codes, x, head, acc, next);
          f.settle();
          const tile_places<T> late = x.again();
          const V d[2] = {scales::scale(place, half, 0), scales::scale(place, half, 1)};
          V m[2];
          if constexpr (scales::has_minimum)
            m[0] = scales::minimum(place, half, 0), m[1] = scales::minimum(place, half, 1);
#pragma GCC unroll 16
          for (int r = 0; r < R * T; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v) {
              if constexpr (Scales::powers) {
                V sum = S::fma(S::sub(S::as_floats(acc[r][v]), number(late, r, halves)), d[v], f.get(r, v));
                if constexpr (scales::has_minimum) sum = S::fma(m[v], number(late, r, half), sum);
                f.set(r, v, sum);
              } else {
                const V s = S::to_floats(acc[r][v]);
                t[r][v] = half == 0 ? S::mul(s, d[v]) : S::fma(s, d[v], t[r][v]);
                if constexpr (scales::has_minimum) t[r][v] = S::fma(m[v], number(late, r, half), t[r][v]);
                if (half == halves - 1) f.set(r, v, S::fma(t[r][v], number(late, r, halves), f.get(r, v)));
              }
            }
        }
        x.advance(head + 32 * R);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R * T; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const V sum = Scales::powers ? S::mul(f.get(r, v), number(x, r, 0)) : f.get(r, v);
        S::store(sums + (2 * r + v) * S::width, sum);
      }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
