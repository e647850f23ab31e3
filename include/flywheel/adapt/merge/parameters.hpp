// Parameters that several methods have, by the names that mergekit gave them.
#pragma once

#include <cmath>
#include <span>
#include <string_view>
#include <vector>

#include "flywheel/adapt/merge/method.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr double unbounded = 1e9;  ///< Of what has no range of its own.

inline constexpr parameter_info weight_parameter{"weight", true, 0, true, -unbounded, unbounded, "How much of a model"};
inline constexpr parameter_info density_parameter{
    "density", true, 1, false, 0, 1, "Share of a difference that is kept"};
inline constexpr parameter_info lambda_parameter{
    "lambda", false, 1, false, -unbounded, unbounded, "Factor of the merged difference"};
/// Of programs that keep masks of bytes; there are no masks in memory here.
inline constexpr parameter_info int8_mask_parameter{"int8_mask", false, 0, false, 0, 1, "Accepted, has no effect",
                                                    {},          true};

[[nodiscard]] constexpr parameter_info normalize_parameter(bool fallback) noexcept {
  return {"normalize", false, fallback ? 1.0 : 0.0, false, 0, 1, "Divide by the sum of weights"};
}
[[nodiscard]] constexpr parameter_info rescale_parameter(bool fallback) noexcept {
  return {"rescale", false, fallback ? 1.0 : 0.0, false, 0, 1, "Make up for what was dropped, by rescale_norm"};
}
inline constexpr std::string_view rescale_words[] = {"density", "l1", "l2"};
/// mergekit matches a norm of the difference; the papers of DARE and DELLA divide by what a number is kept by.
inline constexpr parameter_info rescale_norm_parameter{
    "rescale_norm", false, 1, false, 0, 2, "What stays the same: expectation (density), L1 or L2 norm", rescale_words};

/// Whether weights cancel each other, so that what divides by their sum divides by noise.
[[nodiscard]] inline bool cancels(std::span<const double> weights) noexcept {
  double sum = 0, magnitudes = 0;
  for (const double w : weights) sum += w, magnitudes += std::abs(w);
  return std::abs(sum) <= 1e-6 * magnitudes;
}

/// A parameter's values as f32.
[[nodiscard]] inline std::vector<float> floats_of(std::span<const parameter_info> all, const task& what,
                                                  std::string_view name) {
  const std::span<const double> values = values_of(all, what, name);
  return {values.begin(), values.end()};
}
/// Of one that is not per model.
[[nodiscard]] inline double value_of(std::span<const parameter_info> all, const task& what,
                                     std::string_view name) noexcept {
  return values_of(all, what, name)[0];
}

}  // namespace flywheel::inline v0::adapt::merge
