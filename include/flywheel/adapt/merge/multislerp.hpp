// Barycentre on a sphere: directions u_m = x_m / (|x_m| + eps) are averaged by weight, the average is brought back to
// the sphere, and scaled by the weighted mean of lengths; of differences from the base where there is one. mergekit
// also averages in the tangent space at that point, where the weighted mean of the u_m is 0 by construction: its step
// is one of length eps to nowhere, a factor of cos(eps), which f32 does not see for the eps that are taken here. Where
// the average is shorter than eps it has no direction: linear then. One model alone is not changed.
#pragma once

#include <cmath>

#include "flywheel/adapt/merge/combination.hpp"
#include "flywheel/adapt/merge/parameters.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr parameter_info multislerp_parameters[] = {
    weight_parameter,
    {"normalize_weights", false, 1, false, 0, 1, "Divide weights by their sum"},
    {"eps", false, 1e-8, false, 0, 1e-4, "What is taken for no length"}};

struct multislerp_rule {
  std::vector<double> weights;
  double eps;
  void operator()(const gram& g, std::span<double> c) const {
    double squared = 0, length = 0;
    for (std::size_t i = 0; i < c.size(); ++i) c[i] = g.norm(i) + eps > 0 ? weights[i] / (g.norm(i) + eps) : 0;
    for (std::size_t i = 0; i < c.size(); ++i) {
      length += weights[i] * g.norm(i);
      for (std::size_t j = 0; j < c.size(); ++j) squared += c[i] * c[j] * g(i, j);
    }
    const double mean = std::sqrt(std::max(squared, 0.0));
    for (std::size_t i = 0; i < c.size(); ++i) c[i] = mean > 0 && mean >= eps ? c[i] * length / mean : weights[i];
  }
};

inline constexpr method multislerp{
    .name = "multislerp",
    .base = base_use::optional,
    .parameters = multislerp_parameters,
    .formula = "|x| u / |u|, u = sum of w_m x_m / |x_m|, |x| = sum of w_m |x_m|",
    .start = [](const task& what) -> std::unique_ptr<merger> {
      if (what.models == 1) return unchanged();
      const auto w = values_of(multislerp_parameters, what, "weight");
      std::vector<double> weights(w.begin(), w.end());
      double sum = 0;
      for (const double one : weights) sum += one;
      if (value_of(multislerp_parameters, what, "normalize_weights") != 0)
        for (double& one : weights) one /= sum;
      return start_gram(multislerp_rule{std::move(weights), value_of(multislerp_parameters, what, "eps")}, what,
                        vectors::tensor);
    },
    .refuses = [](const task& what) -> std::string_view {
      return what.models > 1 && cancels(values_of(multislerp_parameters, what, "weight")) &&
                     value_of(multislerp_parameters, what, "normalize_weights") != 0
                 ? "the weights add up to 0"
                 : "";
    }};

}  // namespace flywheel::inline v0::adapt::merge
