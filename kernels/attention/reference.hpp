// Specification of attention, in double, over plain K and V:  out = softmax(scale q K^T) V
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace flywheel::inline v0::kernels::reference {

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
