// Specification of attention, in double, over plain K and V:  out = softmax(scale q K^T) V
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace flywheel::inline v0::kernels::reference {

/// H x / sqrt(n) for each block of n numbers, n a power of two: see rotation.hpp.
inline std::vector<double> rotate(const std::vector<double>& x, std::size_t n) {
  std::vector<double> y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      const double term = x[i / n * n + j];
      y[i] += std::popcount(i % n & j) % 2 == 0 ? term : -term;
    }
    y[i] /= std::sqrt(static_cast<double>(n));
  }
  return y;
}

/// One head of one token. k, v: [positions, head_dim]; sees positions [first, last]. sink: extra logit, or null.
inline std::vector<double> attention(const float* q, const float* k, const float* v, std::int64_t head_dim,
                                     std::int64_t first, std::int64_t last, double scale, double softcap,
                                     const float* sink) {
  std::vector<double> scores;
  double peak = sink ? static_cast<double>(*sink) : -HUGE_VAL;
  for (std::int64_t p = first; p <= last; ++p) {
    double s = 0;
    for (std::int64_t d = 0; d < head_dim; ++d)
      s += static_cast<double>(q[d]) * static_cast<double>(k[p * head_dim + d]);
    s *= scale;
    if (softcap > 0) s = softcap * std::tanh(s / softcap);
    scores.push_back(s);
    peak = std::fmax(peak, s);
  }
  double denominator = sink ? std::exp(static_cast<double>(*sink) - peak) : 0;
  std::vector<double> out(static_cast<std::size_t>(head_dim));
  for (std::int64_t p = first; p <= last; ++p) {
    const double weight = std::exp(scores[static_cast<std::size_t>(p - first)] - peak);
    denominator += weight;
    for (std::int64_t d = 0; d < head_dim; ++d)
      out[static_cast<std::size_t>(d)] += weight * static_cast<double>(v[p * head_dim + d]);
  }
  for (double& x : out) x /= denominator;
  return out;
}

}  // namespace flywheel::inline v0::kernels::reference
