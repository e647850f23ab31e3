// Products of int8 activations with panels of weights, around any integer dot products: scales, minima and the f32
// sums. Include after one simd_*.hpp. `Dots` supplies
//   tile_rows
//   vectors(R)  int32 accumulators of R rows by two vectors of columns, in pairs
//   is_signed<Panel>  whether the products are of (code - zero), so that zero needs no sums
//   start<R>(from, acc)  sets them to the rows' numbers, R of them; null: zeros
//   steps<Panel, R, Step, End>(codes, q, acc, next)  adds steps Step .. End - 1 of a block, and prefetches
//   total<R>(acc, r, v)  the sums of row r and vector v of columns
// The f32 sums are in registers where there are 32, else in L1. The order of the f32 operations is q_dot4.hpp's.
#pragma once

#include "kernels/matmul/q_channel.hpp"
#include "kernels/matmul/q_product.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class S, class Dots>
struct q_tiles {
  using V = typename S::floats;
  using W = typename S::bytes;
  static constexpr std::int64_t tile_rows = Dots::tile_rows;
  static constexpr int tiles_at_once = 1;
  static constexpr bool in_registers = S::registers >= 32;

  template <class Panel, class Scales, int R>
  static void multiply(const std::byte* panel, const std::byte* x, std::size_t, std::int64_t units, float* sums,
                       std::size_t ahead) {
    if constexpr (Scales::grouped) {
      multiply_groups<Panel, R>(panel, x, units, sums, ahead);
    } else {
      multiply_blocks<Panel, Scales, R>(panel, x, units, sums, ahead);
    }
  }

  /// The f32 sums, [R][2] vectors.
  template <int R, bool InRegisters = in_registers>
  struct running {
    V f[R][2];
    explicit running(float*) {}
    [[gnu::always_inline]] V get(int r, int v) const { return f[r][v]; }
    [[gnu::always_inline]] void set(int r, int v, V x) { f[r][v] = x; }
  };
  template <int R>
  struct running<R, false> {
    float* sums;
    explicit running(float* at) : sums(at) {}
    [[gnu::always_inline]] V get(int r, int v) const { return S::load(sums + (2 * r + v) * S::width); }
    [[gnu::always_inline]] void set(int r, int v, V x) { S::store(sums + (2 * r + v) * S::width, x); }
  };

  /// One int32 sum over each group.
  template <class Panel, int R>
  static void multiply_groups(const std::byte* panel, const std::byte* x, std::int64_t units, float* sums,
                              std::size_t ahead) {
    const sum_groups<Panel> shape(units);
    running<R> f(sums);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)  // -0 changes nothing, not even the sign of a zero
      f.set(r, 0, S::set1(-0.0F)), f.set(r, 1, S::set1(-0.0F));
    for (std::int64_t group = 0; group < shape.groups; ++group) {
      const std::byte* const scales = panel;
      const weight_scales<Panel> d(panel);
      const std::int32_t* q = reinterpret_cast<const std::int32_t*>(x);
      const std::int32_t* const starts = q + shape.blocks * 8 * R;
      const float* const scale = reinterpret_cast<const float*>(starts + R);
      W acc[Dots::vectors(R)][2];
      Dots::template start<R>(Dots::template is_signed<Panel> ? nullptr : starts, acc);
      panel += Panel::scale_bytes;
      for (std::int64_t block = 0; block < shape.blocks; ++block, panel += Panel::block_bytes, q += 8 * R)
        Dots::template steps<Panel, R, 0, 8>(panel, q, acc, {ahead ? scales + block_share<Panel>(block) : x, ahead});
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const V s = S::to_floats(Dots::template total<R>(acc, r, v));
          f.set(r, v, S::add(f.get(r, v), S::mul(S::mul(s, d.at(v)), S::set1(scale[r]))));
        }
      x = reinterpret_cast<const std::byte*>(scale + R);
    }
    if constexpr (in_registers)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) S::store(sums + (2 * r + v) * S::width, f.get(r, v));
  }

  /// The numbers that accumulators start at; see start_of.
  template <class Panel, class Scales, int R>
  [[gnu::always_inline]] static inline const std::int32_t* starts_of(const std::byte* block, int half) {
    const std::int32_t* const head = reinterpret_cast<const std::int32_t*>(block);
    if constexpr (Panel::zero != 0 && !Dots::template is_signed<Panel>) return head + half * R;
    return Scales::powers ? head + Panel::halves * R : nullptr;
  }

  template <class Panel, class Scales, int R>
  static void multiply_blocks(const std::byte* panel, const std::byte* x, std::int64_t units, float* sums,
                              std::size_t ahead) {
    using scales = typename Panel::scales;
    constexpr int halves = Panel::halves;
    constexpr int steps_of_half = 8 / halves;
    running<R> f(sums);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) f.set(r, 0, S::zero()), f.set(r, 1, S::zero());
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
          W acc[Dots::vectors(R)][2];
          Dots::template start<R>(starts_of<Panel, Scales, R>(x, half), acc);
          if (half == 0)
            Dots::template steps<Panel, R, 0, steps_of_half>(codes, q, acc, next);
          else
            Dots::template steps<Panel, R, steps_of_half, 8>(codes, q, acc, next);
#pragma GCC unroll 2
          for (int v = 0; v < 2; ++v) {
            const V d = scales::scale(place, half, v);
            if constexpr (Scales::powers) {
#pragma GCC unroll 8
              for (int r = 0; r < R; ++r) {
                const V s = S::sub(S::as_floats(Dots::template total<R>(acc, r, v)), S::set1(scale[r]));
                V y = S::fma(s, d, f.get(r, v));
                if constexpr (scales::has_minimum)
                  y = S::fma(scales::minimum(place, half, v), S::set1(head[half * R + r]), y);
                f.set(r, v, y);
              }
            } else {
#pragma GCC unroll 8
              for (int r = 0; r < R; ++r) {
                const V s = S::to_floats(Dots::template total<R>(acc, r, v));
                t[r][v] = half == 0 ? S::mul(s, d) : S::fma(s, d, t[r][v]);
              }
              if constexpr (scales::has_minimum) {
                const V m = scales::minimum(place, half, v);
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
            f.set(r, 0, S::fma(t[r][0], a, f.get(r, 0)));
            f.set(r, 1, S::fma(t[r][1], a, f.get(r, 1)));
          }
        }
        x += ((halves + 1) * 4 + 32) * R;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        V y = f.get(r, v);
        if constexpr (Scales::powers) y = S::mul(y, S::set1(reinterpret_cast<const float*>(x)[r]));
        if constexpr (in_registers || Scales::powers) S::store(sums + (2 * r + v) * S::width, y);
      }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
