// Scales (and offsets) of single groups.
#pragma once

#include "flywheel/formats/encoding/levels.hpp"
#include "flywheel/formats/encoding/measure.hpp"
#include "flywheel/formats/encoding/rounding.hpp"

namespace flywheel::inline v0::formats::encoding {

/// Points spread evenly over the unit square: the second coordinate goes in steps of the golden ratio.
template <class S>
struct lattice_point {
  float x, y;
  lattice_point(int i, int n) : x((static_cast<float>(i) + 0.5F) / static_cast<float>(n)) {
    const float turns = 0.618034F * static_cast<float>(i + 1);
    y = turns - static_cast<float>(static_cast<int>(turns));
  }
};

/// What a format keeps of scales (which may be rounded up, see scale_through_f16) and of other numbers: f32, or what is
/// rounded later.
template <class S>
struct stored_exactly {
  static constexpr float least_value = 0;  ///< Groups without a larger one are nothing but zeros.
  static lanes<S> scale(lanes<S> d, float = 0) { return d; }
  static lanes<S> nearest(lanes<S> m) { return m; }
};
template <class S>
struct stored_as_f16 {
  static constexpr float least_value = f16_step / 2;
  static lanes<S> scale(lanes<S> d, float roomy_below = f16_step) { return scale_through_f16(d, roomy_below); }
  static lanes<S> nearest(lanes<S> m) { return through_f16(m); }
};

template <class S>
struct fitted_scale {
  lanes<S> d, error;
};

/// One scale: x ~ d l, kept as R says. Scales are tried over the range of the levels, least squares gives each its due,
/// and the best takes three steps of least squares. Errors that are not numbers never win, so that extreme values
/// end up with the nearest scale. A greedy fit begins where a search ends. Negative where levels are lopsided alone.
template <class S, class L, class R, class D>
fitted_scale<S> fit_scale(const D& data, rounding method) {
  using V = lanes<S>;
  V peak = signed_peak<S>(data);
  if constexpr (!L::lopsided) peak = magnitude(peak);
  const V nominal = select(V::all(R::least_value) < magnitude(peak), peak * V::all(1 / L::peak), V::all(0));
  fitted_scale<S> best{R::scale(nominal, f16_smooth), V::all(0)};
  if (method == rounding::nearest) {
    // Two levels: the largest value is no measure of the others; their mean magnitude is.
    if constexpr (L::count == 2) best.d = R::nearest(measure_gain<S, L>(data, nominal).next);
    return best;
  }
  scale_fit<S> fit = measure_scale<S, L>(data, best.d);
  best.error = fit.error;
  V next = fit.next, worth = V::all(0) - V::all(3e38F);
  const auto consider = [&](V d) {
    V here_next, here_worth;
    if constexpr (L::count <= 64) {
      const scale_gain<S> here = measure_gain<S, L>(data, d);
      here_next = here.next, here_worth = here.gain;
    } else {
      const scale_fit<S> here = measure_scale<S, L>(data, d);
      here_next = here.next, here_worth = V::all(0) - here.next_error;
    }
    const condition<S> better = worth < here_worth;
    next = select(better, here_next, next);
    worth = select(better, here_worth, worth);
  };
  for (int pass = 0; pass < (method == rounding::greedy ? 2 : 1); ++pass) {
    const int tries = pass == 0 ? L::tries : 6 * L::tries;
    const float step = (L::widest - L::narrowest) / static_cast<float>(tries - 1);
    for (int i = 0; i < tries; ++i) {
      const V d = nominal * V::all(L::narrowest + step * static_cast<float>(i));
      consider(d);
      if constexpr (L::lopsided)
        if (i % 2 == 0) consider(V::all(0) - d);
    }
    V from = next;
    for (int i = 0; i < 3; ++i) {
      const V d = R::scale(from, i == 2 ? f16_smooth : f16_step);
      fit = measure_scale<S, L>(data, d);
      const condition<S> better = fit.error < best.error;
      best.d = select(better, d, best.d);
      best.error = select(better, fit.error, best.error);
      from = fit.next;
    }
  }
  return best;
}

/// Scale and offset: x ~ d q + m, q in 0 .. highest, kept as R says; offsets at most zero if asked for.
template <class S, class R, class D>
line<S> fit_line(const D& data, rounding method, float highest, bool below_zero) {
  using V = lanes<S>;
  V low = data.x(0), high = low;
  for (std::int64_t i = 1; i < data.size; ++i) low = least(low, data.x(i)), high = most(high, data.x(i));
  if (below_zero) low = least(low, V::all(0)), high = most(high, V::all(0));
  const V range = high - low;
  line<S> best{R::scale(range * V::all(1 / highest), f16_smooth), R::nearest(low), V::all(0)};
  if (method == rounding::nearest) return best;
  line_sums<S> sums = measure_line(data, best.d, best.m, highest);
  best.error = sums.rr;
  const V total = data.total();
  line<S> next = solve_line(sums, total, best.d, best.m, below_zero);
  const auto consider = [&](V d, V m) {
    if (below_zero) m = least(V::all(0), m);
    const line<S> here = solve_line(measure_line(data, d, m, highest), total, d, m, below_zero);
    const condition<S> better = here.error < next.error;
    next.d = select(better, here.d, next.d);
    next.m = select(better, here.m, next.m);
    next.error = select(better, here.error, next.error);
  };
  for (int pass = 0; pass < (method == rounding::greedy ? 2 : 1); ++pass) {
    // Far: either end of the range drawn in, or out. Near: the last code moved by a step, the first by half of one.
    const int far = pass == 0 ? 16 : 64, near = far;
    const float reach = highest < 8 ? 0.45F : 0.3F;
    for (int i = 0; i < far; ++i) {
      const lattice_point<S> p(i, far);
      const V left = V::all(reach * p.x - 0.06F), right = V::all(reach * p.y - 0.06F);
      const V m = fma(range, left, low);
      consider(fnma(range, right, high - m) * V::all(1 / highest), m);
    }
    for (int i = 0; i < near; ++i) {
      const lattice_point<S> p(i, near);
      const V shift = next.d * V::all(p.x - 0.5F);
      consider(next.d * V::all(1 + (2 * p.y - 1) / highest), next.m + shift);
    }
    line<S> from = next;
    for (int i = 0; i < 3; ++i) {
      const V d = R::scale(from.d, i == 2 ? f16_smooth : f16_step), m = R::nearest(from.m);
      sums = measure_line(data, d, m, highest);
      const condition<S> better = sums.rr < best.error;
      best.d = select(better, d, best.d);
      best.m = select(better, m, best.m);
      best.error = select(better, sums.rr, best.error);
      from = solve_line(sums, total, d, m, below_zero);
    }
  }
  return best;
}

}  // namespace flywheel::inline v0::formats::encoding
