// Rounding with error feedback over `simd` vectors. Include after one simd_*.hpp.
#pragma once

#include "kernels/feedback/feedback.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class S>
struct feedback {
  using V = typename S::floats;

  /// Two vectors of lanes at once: with two sums each, four chains of multiply-adds are under way.
  static void round_columns(const feedback_args& a) {
    for (std::int64_t lane = 0; lane < a.lanes; lane += 2 * S::width)
      for (std::int64_t j = 0; j < a.columns; ++j) {
        const float* const f = a.factors + j * a.factor_stride;
        const float* c = a.change + lane;
        const float* const t = a.target + j * a.lanes + lane;
        V even0 = S::load(t), even1 = S::load(t + S::width), odd0 = S::zero(), odd1 = S::zero();
        std::int64_t i = 0;
        for (; i + 2 <= j; i += 2, c += 2 * a.lanes) {
          const V f0 = S::set1(f[i]), f1 = S::set1(f[i + 1]);
          even0 = S::fma(f0, S::load(c), even0);
          even1 = S::fma(f0, S::load(c + S::width), even1);
          odd0 = S::fma(f1, S::load(c + a.lanes), odd0);
          odd1 = S::fma(f1, S::load(c + a.lanes + S::width), odd1);
        }
        if (i < j) {
          const V f0 = S::set1(f[i]);
          even0 = S::fma(f0, S::load(c), even0);
          even1 = S::fma(f0, S::load(c + S::width), even1);
        }
        round(a, j, lane, S::add(even0, odd0));
        round(a, j, lane + S::width, S::add(even1, odd1));
      }
  }

  static void round(const feedback_args& a, std::int64_t j, std::int64_t lane, V t) {
    const std::int64_t grid = a.group[j] * a.lanes + lane, at = j * a.lanes + lane;
    const V minimum = S::load(a.minimum + grid);
    const V x = S::mul(S::add(t, minimum), S::load(a.inverse + grid));
    V index = S::zero(), level = S::set1(a.levels.first);
    if (a.levels.step != 0) {
      const V highest = S::set1(static_cast<float>(a.levels.count - 1));
      index = S::mul(S::sub(x, level), S::set1(1 / a.levels.step));
      index = S::sub(S::add(S::min(highest, S::max(S::zero(), index)), S::set1(round_magic)), S::set1(round_magic));
      level = S::add(level, S::mul(index, S::set1(a.levels.step)));
    } else {
      // Steps up for every middle below x: (x - middle) times a large number, cut to 0 .. 1.
      const V bounded = S::min(S::set1(1e6F), S::max(S::set1(-1e6F), x));
      for (std::int32_t i = 0; i + 1 < a.levels.count; ++i) {
        const V beyond = S::mul(S::sub(bounded, S::set1(a.levels.middles[i])), S::set1(1e30F));
        const V above = S::min(S::set1(1), S::max(S::zero(), beyond));
        index = S::add(index, above);
        level = S::add(level, S::mul(above, S::set1(a.levels.distances[i])));
      }
    }
    S::store_low_bytes(a.codes + at, S::as_bytes(S::add(index, S::set1(round_magic))));
    const V value = S::sub(S::mul(S::load(a.scale + grid), level), minimum);
    const V error = S::sub(S::load(a.weights + at), value);
    S::store(a.change + at, S::sub(error, S::load(a.errors + at)));
    S::store(a.errors + at, error);
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
