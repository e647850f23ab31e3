// What a scale (and an offset) does to groups of values: the weighted error with every value on its nearest level, and
// the least-squares step from there. `Data` gives
//   size;  x(i), w(i)               value i of every lane's group, and its weight
//   total()                         the sum of its weights (lines alone need it)
//   sum(v), largest(v)              over all lanes, where the lanes share one group; v itself where each has its own
#pragma once

#include "flywheel/formats/encoding/lanes.hpp"

namespace flywheel::inline v0::formats::encoding {

/// Errors and the scale that least squares would take for the same codes.
template <class S>
struct scale_fit {
  lanes<S> error;       ///< sum w (x - d l)^2
  lanes<S> next;        ///< sum w x l / sum w l^2
  lanes<S> next_error;  ///< sum w (x - next l)^2
  lanes<S> cross;       ///< sum w (x - d l) l
  lanes<S> square;      ///< sum w l^2
};

/// Errors are summed from residuals, not as differences of squares: at 8 bits those would be noise.
template <class S, class L, class D>
scale_fit<S> measure_scale(const D& data, lanes<S> d) {
  using V = lanes<S>;
  const V id = inverse(d);
  V error = V::all(0), cross = error, square = error;  // sums of w r^2, w r l, w l^2
  for (std::int64_t i = 0; i < data.size; ++i) {
    const V x = data.x(i), w = data.w(i);
    const V l = L::nearest(x * id);
    const V r = fnma(d, l, x);
    const V wr = w * r;
    error = fma(wr, r, error);
    cross = fma(wr, l, cross);
    square = fma(w * l, l, square);
  }
  error = data.sum(error), cross = data.sum(cross), square = data.sum(square);
  const V step = cross * inverse(square);
  return {error, d + step, fnma(step, cross, error), cross, square};
}

/// The error alone.
template <class S, class L, class D>
lanes<S> measure_scale_error(const D& data, lanes<S> d) {
  using V = lanes<S>;
  const V id = inverse(d);
  V error = V::all(0);
  for (std::int64_t i = 0; i < data.size; ++i) {
    const V x = data.x(i);
    const V r = fnma(d, L::nearest(x * id), x);
    error = fma(data.w(i) * r, r, error);
  }
  return data.sum(error);
}

/// The codes of a scale as a direction: what least squares takes for them, and how much of sum w x^2 it explains.
/// Enough to choose among scales at up to 64 levels, in two thirds of the time of measure_scale.
template <class S>
struct scale_gain {
  lanes<S> next;  ///< sum w x l / sum w l^2
  lanes<S> gain;  ///< (sum w x l)^2 / sum w l^2
};
template <class S, class L, class D>
scale_gain<S> measure_gain(const D& data, lanes<S> d) {
  using V = lanes<S>;
  const V id = inverse(d);
  V cross = V::all(0), square = cross;
  for (std::int64_t i = 0; i < data.size; ++i) {
    const V x = data.x(i);
    const V l = L::nearest(x * id);
    const V wl = data.w(i) * l;
    cross = fma(wl, x, cross);
    square = fma(wl, l, square);
  }
  cross = data.sum(cross), square = data.sum(square);
  const V next = cross * inverse(square);
  return {next, next * cross};
}

/// The weighted sums of a group with x ~ d q + m, from residuals r = x - d q - m.
template <class S>
struct line_sums {
  lanes<S> rr, rq, r, qq, q;
};

/// Codes 0 .. highest.
template <class S, class D>
line_sums<S> measure_line(const D& data, lanes<S> d, lanes<S> m, float highest) {
  using V = lanes<S>;
  const V id = inverse(d);
  line_sums<S> s;
  s.rr = s.rq = s.r = s.qq = s.q = V::all(0);
  for (std::int64_t i = 0; i < data.size; ++i) {
    const V x = data.x(i) - m, w = data.w(i);
    const V q = round_within(x * id, 0, highest);
    const V r = fnma(d, q, x);
    const V wr = w * r, wq = w * q;
    s.rr = fma(wr, r, s.rr);
    s.rq = fma(wr, q, s.rq);
    s.r = s.r + wr;
    s.qq = fma(wq, q, s.qq);
    s.q = s.q + wq;
  }
  return s;
}

/// Of those rr and r alone.
template <class S>
struct line_error {
  lanes<S> rr, r;
};
template <class S, class D>
line_error<S> measure_line_error(const D& data, lanes<S> d, lanes<S> m, float highest) {
  using V = lanes<S>;
  const V id = inverse(d);
  V rr = V::all(0), sum = rr;
  for (std::int64_t i = 0; i < data.size; ++i) {
    const V x = data.x(i) - m;
    const V r = fnma(d, round_within(x * id, 0, highest), x);
    const V wr = data.w(i) * r;
    rr = fma(wr, r, rr);
    sum = sum + wr;
  }
  return {rr, sum};
}

template <class S>
struct line {
  lanes<S> d, m, error;
};

/// The least-squares line for the codes that were measured at (d, m), `one` = sum w; with m <= 0 if asked for.
template <class S>
line<S> solve_line(const line_sums<S>& s, lanes<S> one, lanes<S> d, lanes<S> m, bool below_zero) {
  using V = lanes<S>;
  const V det = s.qq * one - s.q * s.q;
  const V id = select(V::all(1e-6F) * s.qq * one < det, inverse(det), V::all(0));  // all codes alike: only m moves
  const V flat = select(V::all(0) < id, V::all(0), s.r * inverse(one));
  V dd = (s.rq * one - s.r * s.q) * id;
  V dm = (s.r * s.qq - s.rq * s.q) * id + flat;
  if (below_zero) {
    const condition<S> above = V::all(0) < m + dm;
    const V to_zero = V::all(0) - m;
    dd = select(above, (s.rq - to_zero * s.q) * inverse(s.qq), dd);
    dm = select(above, to_zero, dm);
  }
  const V two = V::all(2);
  const V error = s.rr - two * (dd * s.rq + dm * s.r) + dd * dd * s.qq + two * dd * dm * s.q + dm * dm * one;
  return {d + dd, m + dm, error};
}

/// The value of largest magnitude of each group, with its sign.
template <class S, class D>
lanes<S> signed_peak(const D& data) {
  using V = lanes<S>;
  V high = V::all(0), low = high;
  for (std::int64_t i = 0; i < data.size; ++i) high = most(high, data.x(i)), low = most(low, V::all(0) - data.x(i));
  high = data.largest(high), low = data.largest(low);
  return select(high < low, V::all(0) - low, high);
}

}  // namespace flywheel::inline v0::formats::encoding
