// Searching the codebooks of IQ1, IQ2 and IQ3. For a scale s > 0 the weighted error of a group x against point l is
//   sum w (x - s l)^2 = sum w x^2 + s (linear + s square),  linear = sum (-2 w x) l,  square = sum w l^2
// where linear and square do not depend on the scale: they are computed once per group and point, after which trying a
// scale costs two operations per point.
#pragma once

#include <cstdint>

namespace flywheel::inline v0::kernels {

/// levels [dims][points], points a multiple of 64, dims 4 or 8; v and w [groups][dims]; linear = sum v l and square =
/// sum w l^2 [groups][points]: sums over dims in order, as fused multiply-adds. flipped [groups][points] (or null): the
/// linear term with the sign changed that costs least, linear - 2 max_i(v_i l_i), for v_i l_i <= 0.
using codebook_terms_fn = void (*)(const std::int8_t* levels, std::int64_t points, int dims, const float* v,
                                   const float* w, std::int64_t groups, float* linear, float* square, float* flipped);
/// least[k] = min over points of linear + scales[k] * square, for `count` scales.
using codebook_least_fn = void (*)(const float* linear, const float* square, std::int64_t points, const float* scales,
                                   int count, float* least);
/// The point with the least linear + scale * square, the first of equals.
using codebook_nearest_fn = std::int64_t (*)(const float* linear, const float* square, std::int64_t points,
                                             float scale);

/// IQ1's points, by halves: a half of four ternary levels is a number in base 3, its first value the lowest digit. Of
/// the points with second half h, low[first[h] .. first[h + 1]) are the first halves in order, times 16; a multiple of
/// four each, filled up with the last one.
struct ternary_book {
  const std::uint16_t* low;
  const std::uint16_t* first;  ///< [82]
};

/// All of a group's errors at up to eight scales and both shifts. v and w [8]. Column k is scale k with levels
/// 8 l + 1, column 8 + k that with 8 l - 1, l in {-1, 0, 1}; the columns from `count` on repeat the last scale.
/// runs [81][16]: the least of sum (v s level + w (s level)^2) over the points with that second half; least [16]: over
/// all.
using ternary_least_fn = void (*)(const ternary_book& book, const float* v, const float* w, const float* scales,
                                  int count, float* runs, float* least);

}  // namespace flywheel::inline v0::kernels
