#include "kernels/declare.hpp"
#include "kernels/feedback/feedback.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

void round_one(const feedback_args& a, std::int64_t j, std::int64_t lane, float t) {
  const std::int64_t grid = a.group[j] * a.lanes + lane, at = j * a.lanes + lane;
  const float x = (t + a.minimum[grid]) * a.inverse[grid];
  std::int32_t index = 0;
  float level = a.levels.first;
  if (a.levels.step != 0) {
    const float highest = static_cast<float>(a.levels.count - 1), steps = (x - level) * (1 / a.levels.step);
    const float nearest = choose(steps > highest, highest, choose(steps > 0, steps, 0.0F)) + round_magic - round_magic;
    index = static_cast<std::int32_t>(nearest);
    level += nearest * a.levels.step;
  } else {
    for (; index + 1 < a.levels.count && x > a.levels.middles[index]; ++index) level += a.levels.distances[index];
  }
  const float error = a.weights[at] - (a.scale[grid] * level - a.minimum[grid]);
  a.codes[at] = static_cast<std::uint8_t>(index);
  a.change[at] = error - a.errors[at];
  a.errors[at] = error;
}

}  // namespace

void round_columns_generic(const feedback_args& a) {
  constexpr std::int64_t together = 8;
  for (std::int64_t lane = 0; lane < a.lanes; lane += together)
    for (std::int64_t j = 0; j < a.columns; ++j) {
      float t[together];
      for (std::int64_t l = 0; l < together; ++l) t[l] = a.target[j * a.lanes + lane + l];
      const float* const f = a.factors + j * a.factor_stride;
      for (std::int64_t i = 0; i < j; ++i)
        for (std::int64_t l = 0; l < together; ++l) t[l] = multiply_add(f[i], a.change[i * a.lanes + lane + l], t[l]);
      for (std::int64_t l = 0; l < together; ++l) round_one(a, j, lane + l, t[l]);
    }
}

}  // namespace flywheel::inline v0::kernels
