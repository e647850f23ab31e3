// Codebook search over `simd` vectors, a point per lane. Include after one simd_*.hpp.
#pragma once

#include "kernels/codebook/codebook.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class S>
struct codebook_search {
  using V = typename S::floats;
  /// Groups that share the loads of levels; their sums stay in registers.
  static constexpr int at_once = S::registers == 32 ? 4 : 2;

  template <int Groups, bool Flip>
  static void terms_of(const std::int8_t* levels, std::int64_t points, int dims, const float* v, const float* w,
                       float* linear, float* square, float* flipped) {
    for (std::int64_t p = 0; p < points; p += S::width) {
      V first[Groups], second[Groups], largest[Groups];
      for (int g = 0; g < Groups; ++g) {
        first[g] = second[g] = S::zero();
        largest[g] = S::set1(-__builtin_inff());
      }
      for (int i = 0; i < dims; ++i) {
        const V level = S::load_i8(levels + i * points + p), squared = S::mul(level, level);
        for (int g = 0; g < Groups; ++g) {
          const V factor = S::set1(v[g * dims + i]);
          first[g] = S::fma(factor, level, first[g]);
          second[g] = S::fma(S::set1(w[g * dims + i]), squared, second[g]);
          if constexpr (Flip) largest[g] = S::max(largest[g], S::mul(factor, level));
        }
      }
      for (int g = 0; g < Groups; ++g) {
        S::store(linear + g * points + p, first[g]);
        S::store(square + g * points + p, second[g]);
        if constexpr (Flip) S::store(flipped + g * points + p, S::fma(S::set1(-2), largest[g], first[g]));
      }
    }
  }

  template <bool Flip>
  static void all_terms(const std::int8_t* levels, std::int64_t points, int dims, const float* v, const float* w,
                        std::int64_t groups, float* linear, float* square, float* flipped) {
    while (groups > 0) {
      const bool many = groups >= at_once;
      (many ? terms_of<at_once, Flip> : terms_of<1, Flip>)(levels, points, dims, v, w, linear, square, flipped);
      const std::int64_t done = many ? at_once : 1;
      groups -= done, v += done * dims, w += done * dims;
      linear += done * points, square += done * points;
      if constexpr (Flip) flipped += done * points;
    }
  }

  static void terms(const std::int8_t* levels, std::int64_t points, int dims, const float* v, const float* w,
                    std::int64_t groups, float* linear, float* square, float* flipped) {
    if (flipped != nullptr)
      all_terms<true>(levels, points, dims, v, w, groups, linear, square, flipped);
    else
      all_terms<false>(levels, points, dims, v, w, groups, linear, square, flipped);
  }

  static void least(const float* linear, const float* square, std::int64_t points, const float* scales, int count,
                    float* result) {
    for (int k = 0; k < count; k += 4) {
      V scale[4], low[4], also[4];
      for (int i = 0; i < 4; ++i) {
        scale[i] = S::set1(scales[k + i < count ? k + i : count - 1]);
        low[i] = also[i] = S::set1(__builtin_inff());
      }
      for (std::int64_t p = 0; p < points; p += 2 * S::width) {
        const V a = S::load(linear + p), a_square = S::load(square + p);
        const V b = S::load(linear + p + S::width), b_square = S::load(square + p + S::width);
        for (int i = 0; i < 4; ++i) {
          low[i] = S::min(S::fma(scale[i], a_square, a), low[i]);
          also[i] = S::min(S::fma(scale[i], b_square, b), also[i]);
        }
      }
      for (int i = 0; i < 4 && k + i < count; ++i)
        result[k + i] = -S::largest(S::sub(S::zero(), S::min(low[i], also[i])));
    }
  }

  static std::int64_t nearest(const float* linear, const float* square, std::int64_t points, float scale) {
    const V s = S::set1(scale);
    V low[4];
    for (V& lane : low) lane = S::set1(__builtin_inff());
    for (std::int64_t p = 0; p < points; p += 4 * S::width)
      for (int i = 0; i < 4; ++i) {
        const std::int64_t at = p + i * S::width;
        low[i] = S::min(S::fma(s, S::load(square + at), S::load(linear + at)), low[i]);
      }
    const V least = S::set1(-S::largest(S::sub(S::zero(), S::min(S::min(low[0], low[1]), S::min(low[2], low[3])))));
    // Of the points that reach it, the one with the lowest number.
    alignas(64) float numbers[S::width];
    for (int i = 0; i < S::width; ++i) numbers[i] = static_cast<float>(i);
    const V step = S::set1(S::width), none = S::set1(static_cast<float>(points));
    V number = S::load(numbers), lowest = none;
    for (std::int64_t p = 0; p < points; p += S::width, number = S::add(number, step)) {
      const V here = S::fma(s, S::load(square + p), S::load(linear + p));
      lowest = S::min(S::select(S::less(least, here), none, number), lowest);
    }
    const auto found = static_cast<std::int64_t>(-S::largest(S::sub(S::zero(), lowest)));
    return found < points ? found : 0;
  }
};

/// The search of IQ1's codebook: a combination of scale and shift per lane, so that sums over half a point are shared.
template <class S>
struct ternary_search {
  using V = typename S::floats;
  static constexpr int vectors = 16 / S::width;  ///< Of a row of 16 columns.

  /// Every sum over one half of a group, [81][16].
  static void half_sums(const float* v, const float* w, const V* scale, const V* unit, float* sums) {
    for (int c = 0; c < vectors; ++c) {
      V of[4][3];  // value, level
      for (int i = 0; i < 4; ++i)
        for (int level = 0; level < 3; ++level) {
          const V m = S::mul(scale[c], S::add(unit[c], S::set1(static_cast<float>(8 * level - 8))));
          of[i][level] = S::mul(m, S::fma(S::set1(w[i]), m, S::set1(v[i])));
        }
      for (int high = 0; high < 9; ++high) {
        const V pair = S::add(of[2][high % 3], of[3][high / 3]);
        for (int low = 0; low < 9; ++low)
          S::store(sums + (9 * high + low) * 16 + c * S::width, S::add(pair, S::add(of[0][low % 3], of[1][low / 3])));
      }
    }
  }

  static void least(const ternary_book& book, const float* v, const float* w, const float* scales, int count,
                    float* runs, float* result) {
    alignas(64) float column_scale[16], column_unit[16], low[81 * 16], high[81 * 16];
    for (int k = 0; k < 8; ++k) {
      column_scale[k] = column_scale[8 + k] = scales[k < count ? k : count - 1];
      column_unit[k] = 1;
      column_unit[8 + k] = -1;
    }
    V scale[vectors], unit[vectors], best[vectors];
    for (int c = 0; c < vectors; ++c) {
      scale[c] = S::load(column_scale + c * S::width);
      unit[c] = S::load(column_unit + c * S::width);
      best[c] = S::set1(__builtin_inff());
    }
    half_sums(v, w, scale, unit, low);
    half_sums(v + 4, w + 4, scale, unit, high);
    for (int h = 0; h < 81; ++h) {
      const std::uint16_t* point = book.low + book.first[h];
      const std::uint16_t* const end = book.low + book.first[h + 1];
      V found[4][vectors];  // four chains, since a minimum waits for the one before it
      for (int n = 0; n < 4; ++n)
        for (int c = 0; c < vectors; ++c) found[n][c] = S::load(low + point[n] + c * S::width);
      for (point += 4; point < end; point += 4)
        for (int i = 0; i < 4; ++i)
          for (int c = 0; c < vectors; ++c) found[i][c] = S::min(S::load(low + point[i] + c * S::width), found[i][c]);
      for (int c = 0; c < vectors; ++c) {
        const V run = S::add(S::min(S::min(found[0][c], found[1][c]), S::min(found[2][c], found[3][c])),
                             S::load(high + h * 16 + c * S::width));
        S::store(runs + h * 16 + c * S::width, run);
        best[c] = S::min(run, best[c]);
      }
    }
    for (int c = 0; c < vectors; ++c) S::store(result + c * S::width, best[c]);
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
