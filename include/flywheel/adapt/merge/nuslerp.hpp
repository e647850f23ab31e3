// Spherical interpolation between two models, or between their differences from a base, at t = w_2 / (w_1 + w_2) (1/2
// where the weights add up to less than 1e-6). With nuslerp_flatten, the tensor is one vector; else every row is one
// (the last dimension, as stored), or with nuslerp_row_wise every column: mergekit's meaning of that name. A tensor of
// one row is one vector in any case. Linear where |sin(theta)| < 1e-8. Formula as in slerp.hpp; mergekit treats a
// vector shorter than 1e-7 as one of that length, here its angle to others is a right one.
#pragma once

#include <cmath>

#include "flywheel/adapt/merge/combination.hpp"
#include "flywheel/adapt/merge/parameters.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr parameter_info nuslerp_parameters[] = {
    weight_parameter,
    {"nuslerp_flatten", false, 1, false, 0, 1, "The whole tensor is one vector"},
    {"nuslerp_row_wise", false, 0, false, 0, 1, "Without flatten: columns are vectors, not rows"}};

struct nuslerp_rule {
  double t;
  void operator()(const gram& g, std::span<double> c) const {
    const double theta = std::acos(g.cosine(0, 1, 1e-7)), sine = std::sin(theta);
    const bool straight = std::abs(sine) < 1e-8;
    c[0] = straight ? 1 - t : std::sin((1 - t) * theta) / sine;
    c[1] = straight ? t : std::sin(t * theta) / sine;
  }
};

inline constexpr method nuslerp{
    .name = "nuslerp",
    .base = base_use::optional,
    .min_models = 2,
    .max_models = 2,
    .parameters = nuslerp_parameters,
    .formula = "slerp of two models, or of their differences from a base, at w_2 / (w_1 + w_2)",
    .start = [](const task& what) {
      const auto w = values_of(nuslerp_parameters, what, "weight");
      const double sum = w[0] + w[1], t = std::abs(sum) < 1e-6 ? 0.5 : w[1] / sum;
      const bool flat = value_of(nuslerp_parameters, what, "nuslerp_flatten") != 0 || what.cols == what.elements;
      const bool columns = value_of(nuslerp_parameters, what, "nuslerp_row_wise") != 0;
      return start_gram(nuslerp_rule{t}, what, flat ? vectors::tensor : (columns ? vectors::columns : vectors::rows));
    }};

}  // namespace flywheel::inline v0::adapt::merge
