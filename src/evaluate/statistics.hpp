// Means, their standard errors, and quantiles.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "flywheel/evaluate/compare.hpp"

namespace flywheel::inline v0::evaluate {

/// Mean of f(item), and its standard error sqrt(variance / (n - 1)): NaN for one item.
template <class T, class F>
[[nodiscard]] estimate mean_of(std::span<const T> items, F&& f) {
  const auto n = static_cast<double>(items.size());
  double sum = 0, squares = 0;
  for (const T& item : items) sum += f(item);
  const double mean = sum / n;
  for (const T& item : items) squares += (f(item) - mean) * (f(item) - mean);
  return {mean, n > 1 ? std::sqrt(squares / n / (n - 1)) : std::nan("")};
}

/// The value below which `share` of the sorted ones lie, between neighbours in proportion.
[[nodiscard]] inline double quantile(std::span<const double> sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const double rest = at - static_cast<double>(below);
  return (1 - rest) * sorted[below] + rest * sorted[std::min(below + 1, sorted.size() - 1)];
}

}  // namespace flywheel::inline v0::evaluate
