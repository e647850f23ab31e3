// Scales of blocks: what every group would like, then the integers and the block's scale that come nearest together.
#pragma once

#include <cstdint>

#include "flywheel/formats/encoding/blocks.hpp"
#include "flywheel/formats/encoding/fit.hpp"
#include "flywheel/formats/encoding/tile.hpp"

namespace flywheel::inline v0::formats::encoding {

/// The fitted blocks of a tile. scale and offset [count] are what the decoder multiplies with and adds, per group.
template <class S, dtype Type>
struct block_fit {
  using F = scheme<S, Type>;
  using L = typename F::levels;
  using V = lanes<S>;
  using T = tile<S, F::group, F::groups>;
  static constexpr int count = T::count;

  /// Numbers of a candidate: integers and error per group, and the blocks' scales.
  struct state {
    alignas(64) float s[count];  ///< Stored integers, signed.
    alignas(64) float m[count];
    alignas(64) float error[count];
    float d[T::blocks], dmin[T::blocks];
  };

  fields stored[T::blocks];
  alignas(64) float scale[count];
  alignas(64) float offset[count];

  void fit(const T& data, rounding method) {
    for (int b = 0; b < T::blocks; ++b) stored[b] = fields{};
    if constexpr (F::kind == scaling::scale)
      fit_one_scale(data, method);
    else if constexpr (F::kind == scaling::line)
      fit_one_line(data, method);
    else if constexpr (F::kind == scaling::float_scales)
      fit_float_scales(data, method);
    else
      fit_two_levels(data, method);
  }

  /// Codes [group, count] for the fitted scales.
  void round(const T& data, std::uint8_t* codes) const {
    for (int v = 0; v < T::vectors; ++v) {
      const typename T::view view = data.at(v);
      const V id = inverse(V::load(scale + v * S::width)), m = V::load(offset + v * S::width);
      for (int i = 0; i < F::group; ++i)
        S::store_low_bytes(codes + i * count + v * S::width, S::to_words(L::code((view.x(i) - m) * id).v));
    }
  }

 private:
  void fit_one_scale(const T& data, rounding method) {
    for (int v = 0; v < T::vectors; ++v) {
      const fitted_scale<S> fitted = fit_scale<S, L, stored_as_f16<S>>(data.at(v), method);
      fitted.d.store(scale + v * S::width);
      V::all(0).store(offset + v * S::width);
    }
    for (int b = 0; b < T::blocks; ++b) stored[b].d = scale[b];
  }

  void fit_one_line(const T& data, rounding method) {
    for (int v = 0; v < T::vectors; ++v) {
      const line<S> fitted = fit_line<S, stored_as_f16<S>>(data.at(v), method, L::highest, false);
      fitted.d.store(scale + v * S::width);
      fitted.m.store(offset + v * S::width);
    }
    for (int b = 0; b < T::blocks; ++b) stored[b].d = scale[b], stored[b].dmin = offset[b];
  }

  /// Scales are few: those around the nominal one are tried.
  void fit_float_scales(const T& data, rounding method) {
    alignas(64) float peak[count];
    int nominal[count], chosen[count];
    for (int v = 0; v < T::vectors; ++v) magnitude(signed_peak<S>(data.at(v))).store(peak + v * S::width);
    for (int g = 0; g < count; ++g) chosen[g] = nominal[g] = nominal_code(peak[g]);
    const auto load_scales = [&](int shift, float* out) {
      for (int g = 0; g < count; ++g) out[g] = F::scale_of(clamp_code(nominal[g] + shift));
    };
    load_scales(0, scale);
    if (method != rounding::nearest) {
      alignas(64) float error[count], d[count], here[count];
      measure_all(data, scale, error);
      for (int shift = -F::below; shift <= F::above; ++shift) {
        if (shift == 0) continue;
        load_scales(shift, d);
        measure_all(data, d, here);
        for (int g = 0; g < count; ++g)
          if (here[g] < error[g]) error[g] = here[g], scale[g] = d[g], chosen[g] = clamp_code(nominal[g] + shift);
      }
    }
    for (int g = 0; g < count; ++g) {
      offset[g] = 0;
      stored[g / F::groups].scale[g % F::groups] = static_cast<std::int8_t>(chosen[g]);
    }
  }
  static int clamp_code(int code) { return code < 0 ? 0 : code > F::largest_code ? F::largest_code : code; }
  /// The code of the scale that puts the peak where the format's plain rounding has it: the nearest one, or the next
  /// below. Not zero, unless the peak is.
  static int nominal_code(float peak) {
    const float d = peak * (1 / F::nominal_level);
    int low = peak > 0 ? 1 : 0, high = F::largest_code;
    while (low < high) {  // the least code with scale >= d
      const int middle = (low + high) / 2;
      if (F::scale_of(middle) < d)
        low = middle + 1;
      else
        high = middle;
    }
    const float above = F::scale_of(low) - d, below = low > 1 ? d - F::scale_of(low - 1) : above;
    return (F::rounds_down ? above > 0 && low > 1 : below < above) ? low - 1 : low;
  }
  static void measure_all(const T& data, const float* d, float* error) {
    for (int v = 0; v < T::vectors; ++v)
      measure_scale_error<S, L>(data.at(v), V::load(d + v * S::width)).store(error + v * S::width);
  }

  // Two levels: d s and, with minima, -dmin m.
  static constexpr bool minima = F::kind == scaling::lines;

  void fit_two_levels(const T& data, rounding method) {
    state best, here;
    try_two_levels(data, rounding::nearest, best, here);
    for (const rounding finer : {rounding::search, rounding::greedy}) {
      if (method < finer) break;
      state found;
      try_two_levels(data, finer, found, here);
      keep_better(best, found);
    }
    for (int b = 0; b < T::blocks; ++b) {
      stored[b].d = best.d[b];
      stored[b].dmin = best.dmin[b];
      for (int g = 0; g < F::groups; ++g) {
        const int at = b * F::groups + g;
        scale[at] = best.d[b] * best.s[at];
        offset[at] = minima ? -(best.dmin[b] * best.m[at]) : 0.0F;
        stored[b].scale[g] = static_cast<std::int8_t>(static_cast<int>(best.s[at]));
        stored[b].minimum[g] = static_cast<std::uint8_t>(static_cast<int>(best.m[at]));
      }
    }
  }

  static void try_two_levels(const T& data, rounding method, state& best, state& here) {
    alignas(64) float want[count], want_min[count];  // per group, freely
    for (int v = 0; v < T::vectors; ++v) {
      if constexpr (minima) {
        const line<S> fitted = fit_line<S, stored_exactly<S>>(data.at(v), method, L::highest, true);
        fitted.d.store(want + v * S::width);
        (V::all(0) - fitted.m).store(want_min + v * S::width);
      } else {
        fit_scale<S, L, stored_exactly<S>>(data.at(v), method).d.store(want + v * S::width);
        V::all(0).store(want_min + v * S::width);
      }
    }
    float top[T::blocks], top_min[T::blocks];
    for (int b = 0; b < T::blocks; ++b) {
      top[b] = signed_top(want + b * F::groups) / scale_peak;
      top_min[b] = signed_top(want_min + b * F::groups) / F::highest_scale;
    }
    const auto start = [&](state& at, float wider, float wider_min, float roomy_below) {
      for (int b = 0; b < T::blocks; ++b) {
        at.d[b] = stored_scale(top[b] * wider, roomy_below);
        at.dmin[b] = stored_scale(top_min[b] * wider_min, roomy_below);
      }
    };
    start(best, 1, 1, f16_smooth);
    choose_integers(data, method, want, want_min, best);
    if (method == rounding::nearest) return;
    // Integers of eight bits leave little to the scale above them.
    const int tries = method != rounding::search ? 12 : F::highest_scale < 100 ? 4 : 3;
    for (int i = 0; i < tries; ++i) {
      const lattice_point<S> p(i, tries);
      start(here, narrowest + (widest - narrowest) * p.x, narrowest + (widest - narrowest) * p.y, f16_step);
      choose_integers(data, method, want, want_min, here);
      keep_better(best, here);
    }
    for (int i = 0; i < (method == rounding::search ? 2 : 4); ++i) {
      refit(data, best, here);
      for (int g = 0; g < count; ++g) {
        want[g] = best.d[g / F::groups] * best.s[g];
        want_min[g] = best.dmin[g / F::groups] * best.m[g];
      }
      choose_integers(data, method, want, want_min, here);
      keep_better(best, here);
    }
  }

  static constexpr float scale_peak = minima ? F::highest_scale : F::lowest_scale;
  static constexpr float widest = F::highest_scale < 20 ? 1.12F : F::highest_scale < 100 ? 1.06F : 1.02F;
  static constexpr float narrowest = F::highest_scale < 20 ? 0.8F : F::highest_scale < 100 ? 0.94F : 0.98F;

  static float stored_scale(float x, float roomy_below) { return scale_through_f16(V::all(x), roomy_below).first(); }

  static float signed_top(const float* x) {
    float top = 0;
    for (int g = 0; g < F::groups; ++g)
      if ((x[g] < 0 ? -x[g] : x[g]) > (top < 0 ? -top : top)) top = x[g];
    return top;
  }

  static void keep_better(state& best, const state& here) {
    for (int b = 0; b < T::blocks; ++b) {
      float old_error = 0, new_error = 0;
      for (int g = b * F::groups; g < (b + 1) * F::groups; ++g) old_error += best.error[g], new_error += here.error[g];
      if (!(new_error < old_error)) continue;
      best.d[b] = here.d[b], best.dmin[b] = here.dmin[b];
      for (int g = b * F::groups; g < (b + 1) * F::groups; ++g)
        best.s[g] = here.s[g], best.m[g] = here.m[g], best.error[g] = here.error[g];
    }
  }

  /// The integers of every group for at.d and at.dmin: those nearest to what it wants, and their neighbours.
  static void choose_integers(const T& data, rounding method, const float* want, const float* want_min, state& at) {
    alignas(64) float d[count], dmin[count];
    for (int g = 0; g < count; ++g) d[g] = at.d[g / F::groups], dmin[g] = at.dmin[g / F::groups];
    const int reach = method == rounding::nearest ? 0 : method == rounding::search ? 1 : 2;
    for (int v = 0; v < T::vectors; ++v) {
      const typename T::view view = data.at(v);
      const int first = v * S::width;
      const V dv = V::load(d + first), dm = V::load(dmin + first);
      const V middle = V::load(want + first) * inverse(dv);
      const V im = inverse(dm), itotal = inverse(view.total());
      V s = round_within(middle, F::lowest_scale, F::highest_scale);
      V m = round_within(V::load(want_min + first) * im, 0, F::highest_scale);
      const V m0 = m;
      V error = V::all(3e38F);
      for (int step = -reach; step <= reach; ++step) {
        const V s1 = round_within(middle + V::all(static_cast<float>(step)), F::lowest_scale, F::highest_scale);
        if constexpr (minima) {
          V m1 = m0;
          for (int i = 0; i < (reach > 0 ? 2 : 1); ++i) {
            const V offset = V::all(0) - dm * m1;
            const line_error<S> sums = measure_line_error(view, dv * s1, offset, L::highest);
            const condition<S> better = sums.rr < error;
            error = select(better, sums.rr, error);
            s = select(better, s1, s);
            m = select(better, m1, m);
            m1 = round_within(m1 - sums.r * itotal * im, 0, F::highest_scale);
          }
        } else {
          const V here = measure_scale_error<S, L>(view, dv * s1);
          const condition<S> better = here < error;
          error = select(better, here, error);
          s = select(better, s1, s);
        }
      }
      s.store(at.s + first);
      m.store(at.m + first);
      error.store(at.error + first);
    }
  }

  /// The block scales that least squares gives to the integers and codes of `from`.
  static void refit(const T& data, const state& from, state& to) {
    alignas(64) float rq[count], r[count], qq[count], q[count];
    alignas(64) float d[count], m[count];
    for (int g = 0; g < count; ++g) {
      d[g] = from.d[g / F::groups] * from.s[g];
      m[g] = -(from.dmin[g / F::groups] * from.m[g]);
    }
    for (int v = 0; v < T::vectors; ++v) {
      const int first = v * S::width;
      if constexpr (minima) {
        const line_sums<S> sums = measure_line(data.at(v), V::load(d + first), V::load(m + first), L::highest);
        sums.rq.store(rq + first);
        sums.r.store(r + first);
        sums.qq.store(qq + first);
        sums.q.store(q + first);
      } else {
        const scale_fit<S> fit = measure_scale<S, L>(data.at(v), V::load(d + first));
        fit.cross.store(rq + first);
        fit.square.store(qq + first);
      }
    }
    for (int b = 0; b < T::blocks; ++b) {
      double a = 0, c = 0, e = 0, f = 0, h = 0;  // [a c; c e] [dd; ddmin] = [f; h]
      for (int g = b * F::groups; g < (b + 1) * F::groups; ++g) {
        const double s = static_cast<double>(from.s[g]), n = static_cast<double>(from.m[g]);
        a += s * s * static_cast<double>(qq[g]);
        f += s * static_cast<double>(rq[g]);
        if constexpr (minima) {
          c -= s * n * static_cast<double>(q[g]);
          e += n * n * static_cast<double>(data.total[g]);
          h -= n * static_cast<double>(r[g]);
        }
      }
      double dd = a > 0 ? f / a : 0, ddmin = 0;
      const double det = a * e - c * c;
      if (minima && det > 1e-9 * a * e) dd = (f * e - h * c) / det, ddmin = (a * h - c * f) / det;
      to.d[b] = stored_scale(static_cast<float>(static_cast<double>(from.d[b]) + dd), f16_step);
      to.dmin[b] = stored_scale(static_cast<float>(static_cast<double>(from.dmin[b]) + ddmin), f16_step);
      if (minima && !(to.dmin[b] >= 0)) to.dmin[b] = from.dmin[b];
    }
  }
};

}  // namespace flywheel::inline v0::formats::encoding
