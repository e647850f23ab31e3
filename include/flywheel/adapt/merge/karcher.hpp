// Riemannian centre of mass (Karcher 1977) of the models' directions on the sphere, by gradient steps
//   u <- cos(|T|) u + sin(|T|) T / |T|,   T = mean of theta_m / sin(theta_m) (u_m - cos(theta_m) u)
// from their normalised mean, at most max_iter of them, until |T| < tol; scaled by the mean of all lengths. Tensors
// shorter than tol have no direction and do not vote. u stays in the span of the models, so that scalar products are
// all it takes. One model alone is not changed. A base model takes part when it is listed as a model; mergekit adds one
// that is not listed.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "flywheel/adapt/merge/combination.hpp"
#include "flywheel/adapt/merge/parameters.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr parameter_info karcher_parameters[] = {
    {"max_iter", false, 10, false, 0, 10000, "Steps at most"},
    {"tol", false, 1e-5, false, 0, 1, "Length of a step that ends the search"}};

struct karcher_rule {
  int steps;
  double tol;

  void operator()(const gram& g, std::span<double> c) const {
    const std::size_t n = c.size();
    std::vector<std::size_t> of;  // those with a direction
    double length = 0;
    for (std::size_t i = 0; i < n; ++i) {
      length += g.norm(i) / static_cast<double>(n);
      if (g.norm(i) > tol) of.push_back(i);
    }
    std::fill(c.begin(), c.end(), 0.0);
    if (of.empty()) return;
    // From here on vectors are coefficients of the directions.
    const std::size_t k = of.size();
    const auto cosine = [&](std::size_t i, std::size_t j) { return i == j ? 1.0 : g.cosine(of[i], of[j], 0); };
    const auto norm = [&](const std::vector<double>& v) {
      double squared = 0;
      for (std::size_t i = 0; i < k; ++i)
        for (std::size_t j = 0; j < k; ++j) squared += v[i] * v[j] * cosine(i, j);
      return std::sqrt(std::max(squared, 0.0));
    };
    std::vector<double> u(k, 1.0 / static_cast<double>(k)), step(k);
    const auto normalise = [&](double least) {
      const double size = norm(u);
      if (size < least) return false;
      for (double& v : u) v /= size;
      return true;
    };
    if (!normalise(std::max(tol, 1e-300))) std::fill(u.begin(), u.end(), 0.0), u[0] = 1;
    for (int iteration = 0; iteration < steps; ++iteration) {
      std::fill(step.begin(), step.end(), 0.0);
      for (std::size_t i = 0; i < k; ++i) {
        double along = 0;
        for (std::size_t j = 0; j < k; ++j) along += u[j] * cosine(i, j);
        along = std::clamp(along, -1.0, 1.0);
        const double theta = std::acos(along), sine = std::sin(theta);
        if (theta < tol || sine == 0) continue;
        const double factor = theta / sine / static_cast<double>(k);
        step[i] += factor;
        for (std::size_t j = 0; j < k; ++j) step[j] -= factor * along * u[j];
      }
      const double size = norm(step);
      if (size < tol || size == 0) break;
      for (std::size_t j = 0; j < k; ++j) u[j] = std::cos(size) * u[j] + std::sin(size) / size * step[j];
      (void)normalise(tol);
    }
    for (std::size_t i = 0; i < k; ++i) c[of[i]] = length * u[i] / g.norm(of[i]);
  }
};

inline constexpr method karcher{.name = "karcher",
                                .base_counts = true,
                                .parameters = karcher_parameters,
                                .formula = "mean length times the Karcher mean of directions (Karcher 1977)",
                                .start = [](const task& what) -> std::unique_ptr<merger> {
                                  if (what.models == 1) return unchanged();
                                  return start_gram(
                                      karcher_rule{static_cast<int>(value_of(karcher_parameters, what, "max_iter")),
                                                   value_of(karcher_parameters, what, "tol")},
                                      what, vectors::tensor);
                                }};

}  // namespace flywheel::inline v0::adapt::merge
