// Weighted average (Wortsman et al. 2022, "Model soups"): out = sum of w_m x_m, divided by the sum of weights unless
// normalize is off. Weights that cancel (a sum below 1e-6 of their magnitudes) have no mean and are refused.
#pragma once

#include <vector>

#include "flywheel/adapt/merge/combination.hpp"
#include "flywheel/adapt/merge/parameters.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr parameter_info linear_parameters[] = {weight_parameter, normalize_parameter(true)};

inline constexpr method linear{.name = "linear",
                               .base_counts = true,
                               .parameters = linear_parameters,
                               .formula = "sum of w_m x_m / sum of w_m (Wortsman et al. 2022)",
                               .start = [](const task& what) -> std::unique_ptr<merger> {
                                 const auto weights = values_of(linear_parameters, what, "weight");
                                 double divisor = 0;
                                 for (const double w : weights) divisor += w;
                                 if (value_of(linear_parameters, what, "normalize") == 0) divisor = 1;
                                 std::vector<double> c;
                                 for (const double w : weights) c.push_back(w / divisor);
                                 return std::make_unique<weighted_merger>(std::move(c), false);
                               },
                               .refuses = [](const task& what) -> std::string_view {
                                 return cancels(values_of(linear_parameters, what, "weight")) &&
                                                value_of(linear_parameters, what, "normalize") != 0
                                            ? "the weights add up to 0"
                                            : "";
                               }};

}  // namespace flywheel::inline v0::adapt::merge
