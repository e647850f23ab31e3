#include <cmath>

#include "kernels/declare.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Sum of squares in several independent f32 chains, which compilers vectorise, joined in double.
double sum_of_squares(const float* x, std::int64_t n) {
  float lanes[16] = {};
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int l = 0; l < 16; ++l) lanes[l] = multiply_add(x[i + l], x[i + l], lanes[l]);
  double sum = 0;
  for (const float lane : lanes) sum += static_cast<double>(lane);
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

void multiply(const float* x, const float* weight, float factor, std::int64_t n, float* y) {
  if (weight)
    for (std::int64_t i = 0; i < n; ++i) y[i] = x[i] * factor * weight[i];
  else
    for (std::int64_t i = 0; i < n; ++i) y[i] = x[i] * factor;
}

float inverse_rms(const float* x, float eps, std::int64_t n) {
  return static_cast<float>(1 / std::sqrt(sum_of_squares(x, n) / static_cast<double>(n) + static_cast<double>(eps)));
}

}  // namespace

void rms_norm_generic(const float* x, const float* weight, float eps, std::int64_t n, float* y) {
  multiply(x, weight, inverse_rms(x, eps, n), n, y);
}

void add_rms_norm_generic(const float* x, const float* r, const float* weight, float eps, std::int64_t n, float* sum,
                          float* y) {
  for (std::int64_t i = 0; i < n; ++i) sum[i] = x[i] + r[i];
  multiply(sum, weight, inverse_rms(sum, eps, n), n, y);
}

void layer_norm_generic(const float* x, const float* weight, const float* bias, float eps, std::int64_t n, float* y) {
  double mean = 0;
  for (std::int64_t i = 0; i < n; ++i) mean += static_cast<double>(x[i]);
  mean /= static_cast<double>(n);
  double variance = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double d = static_cast<double>(x[i]) - mean;
    variance += d * d;
  }
  const float factor = static_cast<float>(1 / std::sqrt(variance / static_cast<double>(n) + static_cast<double>(eps)));
  const float center = static_cast<float>(mean);
  for (std::int64_t i = 0; i < n; ++i) {
    const float scaled = (x[i] - center) * factor;
    y[i] = scaled * (weight ? weight[i] : 1) + (bias ? bias[i] : 0);
  }
}

}  // namespace flywheel::inline v0::kernels
