// Specification of the products, in double:  y[i, j] = bias[j] + residual[i, j] + sum_k x[i, k] w[j, k]
#pragma once

#include <cmath>
#include <cstdint>

namespace flywheel::inline v0::kernels::reference {

struct dot_result {
  double value = 0;
  double magnitude = 0;  ///< Sum of |x w|: what rounding errors are measured against.
};

inline dot_result dot(const float* x, const float* w, std::int64_t k) {
  dot_result sum;
  for (std::int64_t i = 0; i < k; ++i) {
    const double product = static_cast<double>(x[i]) * static_cast<double>(w[i]);
    sum.value += product;
    sum.magnitude += std::fabs(product);
  }
  return sum;
}

/// How kernels with int8 activations see 32 numbers: q = round(x * 127 / max|x|), ties to even, times max|x| / 127;
/// blocks below 1e-30 are zero, and a block with an infinity or NaN is NaN.
inline void quantize_block32(const float* x, float* out) {
  float peak = 0;
  bool finite = true;
  for (int i = 0; i < 32; ++i) {
    finite = finite && std::isfinite(x[i]);
    peak = std::fmax(peak, std::fabs(x[i]));
  }
  const float scale = finite ? peak / 127 : NAN;
  const float inverse = 127 / peak;
  for (int i = 0; i < 32; ++i) {
    const double q = std::nearbyint(static_cast<double>(x[i]) * static_cast<double>(inverse));
    out[i] = !finite ? NAN : peak < 1e-30f ? 0.0f : static_cast<float>(q * static_cast<double>(scale));
  }
}

/// The same with one scale for a row, or group, of k numbers.
inline void quantize_row(const float* x, std::int64_t k, float* out) {
  float peak = 0;
  bool finite = true;
  for (std::int64_t i = 0; i < k; ++i) {
    finite = finite && std::isfinite(x[i]);
    peak = std::fmax(peak, std::fabs(x[i]));
  }
  const float scale = peak / 127, inverse = 127 / peak;
  for (std::int64_t i = 0; i < k; ++i) {
    const double q = std::nearbyint(static_cast<double>(x[i]) * static_cast<double>(inverse));
    out[i] = !finite ? NAN : peak < 1e-30f ? 0.0f : static_cast<float>(q * static_cast<double>(scale));
  }
}

/// flywheel_matmul of flywheel/device/plugin.h for one row and column, rounded as it says: weights w[k] with one scale
/// per `group`, and activations that are quantized as quantize_row does with each group.
inline float grouped_dot(const float* x, const std::int8_t* w, const float* w_scale, std::int64_t k,
                         std::int64_t group) {
  float y = 0;
  for (std::int64_t first = 0, g = 0; first < k; first += group, ++g) {
    const std::int64_t end = first + group < k ? first + group : k;
    float peak = 0;
    bool finite = true;
    for (std::int64_t i = first; i < end; ++i) {
      finite = finite && std::isfinite(x[i]);
      peak = std::fmax(peak, std::fabs(x[i]));
    }
    const bool zero = !finite || peak < 1e-30f;
    const float inverse = 127 / peak;
    const float scale = !finite ? NAN : zero ? 0 : peak / 127;
    std::int32_t sum = 0;
    for (std::int64_t i = first; i < end && !zero; ++i)
      sum += static_cast<std::int32_t>(std::nearbyint(static_cast<double>(x[i]) * static_cast<double>(inverse))) * w[i];
    const float weighted = static_cast<float>(sum) * w_scale[g];
    const float term = weighted * scale;
    y = g == 0 ? term : y + term;
  }
  return y;
}

/// The same with the power-of-two scales of a row of k numbers: those of the blocks are max|x of the row| / 127 * 2^-n,
/// n in 0 .. 20 the largest that holds the block; rows below 1e-28 are zero, a row with an infinity or NaN is NaN.
inline void quantize_powers(const float* x, std::int64_t k, float* out) {
  float peak = 0;
  bool finite = true;
  for (std::int64_t i = 0; i < k; ++i) {
    finite = finite && std::isfinite(x[i]);
    peak = std::fmax(peak, std::fabs(x[i]));
  }
  for (std::int64_t b = 0; b < k; b += 32) {
    float own = 0;
    for (int i = 0; i < 32; ++i) own = std::fmax(own, std::fabs(x[b + i]));
    int n = 0;
    while (n < 20 && own <= std::ldexp(peak, -n - 1)) ++n;
    const float scale = std::ldexp(peak / 127, -n), inverse = std::ldexp(127 / peak, n);
    for (int i = 0; i < 32; ++i) {
      const double q = std::nearbyint(static_cast<double>(x[b + i]) * static_cast<double>(inverse));
      out[b + i] = !finite ? NAN : peak < 1e-28f ? 0.0f : static_cast<float>(q * static_cast<double>(scale));
    }
  }
}

}  // namespace flywheel::inline v0::kernels::reference
