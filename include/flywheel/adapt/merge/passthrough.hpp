// One model's tensor as it is, or scaled: for recipes that stack layers of several models.
#pragma once

#include <vector>

#include "flywheel/adapt/merge/combination.hpp"
#include "flywheel/adapt/merge/parameters.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr parameter_info passthrough_parameters[] = {
    {"scale", true, 1, false, -unbounded, unbounded, "Factor of the tensor"}};

inline constexpr method passthrough{.name = "passthrough",
                                    .base_counts = true,
                                    .max_models = 1,
                                    .parameters = passthrough_parameters,
                                    .formula = "scale x",
                                    .start = [](const task& what) -> std::unique_ptr<merger> {
                                      return std::make_unique<weighted_merger>(
                                          std::vector{value_of(passthrough_parameters, what, "scale")}, false);
                                    }};

}  // namespace flywheel::inline v0::adapt::merge
