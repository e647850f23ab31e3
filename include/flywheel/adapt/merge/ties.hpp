// TIES (Yadav et al. 2023): of every task vector the floor(density n) elements of the largest magnitude, at least one
// unless density is 0 (of equal ones those with the lower index); then a sign elected for every element, and the
// weighted mean of what has it. The election is among weighted, trimmed deltas, as in mergekit and the paper.
#pragma once

#include "flywheel/adapt/merge/magnitude_band.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr parameter_info ties_parameters[] = {
    weight_parameter,         density_parameter,      normalize_parameter(true), lambda_parameter,
    rescale_parameter(false), rescale_norm_parameter, int8_mask_parameter};

/// The `density` share of `n` that are the largest.
[[nodiscard]] inline magnitude_band::range largest(double density, std::int64_t n) noexcept {
  const auto kept = static_cast<std::uint64_t>(density * static_cast<double>(n));
  return {0, density > 0 ? std::max<std::uint64_t>(kept, 1) : 0, density >= 1};
}

inline constexpr method ties{
    .name = "ties",
    .base = base_use::required,
    .parameters = ties_parameters,
    .formula = "base + lambda * mean of the largest deltas of the elected sign (Yadav et al. 2023)",
    .start = [](const task& what) {
      std::vector<magnitude_band::range> keep;
      for (const double density : values_of(ties_parameters, what, "density"))
        keep.push_back(largest(density, what.elements));
      return start_task_vectors(ties_parameters, what,
                                magnitude_band(std::move(keep), floats_of(ties_parameters, what, "density")), true);
    }};

}  // namespace flywheel::inline v0::adapt::merge
