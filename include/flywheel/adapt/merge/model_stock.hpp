// Model Stock (Jang et al. 2024): between the base and the average of N fine-tuned models, at
//   t = N c / (1 + (N - 1) c),   c: the mean cosine between their differences from the base
// The paper has one angle for all pairs; the mean is mergekit's reading. Of each tensor, or with filter_wise of each
// row. Where 1 + (N - 1) c is 0, differences add up to nothing, and t is 0.
#pragma once

#include <algorithm>
#include <cmath>

#include "flywheel/adapt/merge/combination.hpp"
#include "flywheel/adapt/merge/parameters.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr parameter_info model_stock_parameters[] = {
    {"filter_wise", false, 0, false, 0, 1, "Every row has an angle of its own"}};

struct model_stock_rule {
  void operator()(const gram& g, std::span<double> c) const {
    const auto n = static_cast<double>(c.size());
    double sum = 0;
    for (std::size_t i = 0; i < c.size(); ++i)
      for (std::size_t j = 0; j < i; ++j) sum += std::clamp(g(i, j) / std::max(g.norm(i) * g.norm(j), 1e-6), -1.0, 1.0);
    const double mean = sum / (n * (n - 1) / 2), divisor = 1 + (n - 1) * mean;
    std::fill(c.begin(), c.end(), std::abs(divisor) < 1e-12 ? 0 : mean / divisor);  // t / N
  }
};

inline constexpr method model_stock{
    .name = "model_stock",
    .base = base_use::required,
    .min_models = 2,
    .parameters = model_stock_parameters,
    .formula = "t mean + (1-t) base, t = N c / (1 + (N-1) c), c: mean cosine of differences (Jang et al. 2024)",
    .start = [](const task& what) {
      const bool rows = value_of(model_stock_parameters, what, "filter_wise") != 0 && what.cols < what.elements;
      return start_gram(model_stock_rule{}, what, rows ? vectors::rows : vectors::tensor);
    }};

}  // namespace flywheel::inline v0::adapt::merge
