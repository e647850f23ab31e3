// Norms over `simd` vectors. Sums run in f32 in four vectors of lanes, which are joined in double: each lane adds up at
// most n / (4 width) numbers. Include after one simd_*.hpp.
#pragma once

#include "kernels/norm/norm.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class S>
struct norms {
  using V = typename S::floats;

  struct lanes {
    V part[4] = {S::zero(), S::zero(), S::zero(), S::zero()};
    [[nodiscard]] double sum() const {
      alignas(64) float all[4 * S::width];
      for (int i = 0; i < 4; ++i) S::store(all + i * S::width, part[i]);
      double total = 0;
      for (const float x : all) total += static_cast<double>(x);
      return total;
    }
  };

  /// Sum over vectors of add(index, elements, accumulated).
  template <class Add>
  static double accumulate(std::int64_t n, Add add) {
    lanes acc;
    std::int64_t i = 0;
    for (; i + 4 * S::width <= n; i += 4 * S::width)
      for (int j = 0; j < 4; ++j) acc.part[j] = add(i + j * S::width, S::width, acc.part[j]);
    for (int j = 0; i < n; i += S::width, ++j) acc.part[j] = add(i, n - i < S::width ? n - i : S::width, acc.part[j]);
    return acc.sum();
  }

  static V load(const float* p, std::int64_t n) { return n == S::width ? S::load(p) : S::load_part(p, n); }
  static void store(float* p, std::int64_t n, V x) { n == S::width ? S::store(p, x) : S::store_part(p, n, x); }

  static double inverse_root(double sum, double eps, std::int64_t n) {
    return 1 / __builtin_sqrt(sum / static_cast<double>(n) + eps);
  }

  static void multiply(const float* x, const float* weight, double factor, std::int64_t n, float* y) {
    const V f = S::set1(static_cast<float>(factor));
    for (std::int64_t i = 0; i < n; i += S::width) {
      const std::int64_t left = n - i < S::width ? n - i : S::width;
      V scaled = S::mul(load(x + i, left), f);
      if (weight) scaled = S::mul(scaled, load(weight + i, left));
      store(y + i, left, scaled);
    }
  }

  static void rms_norm(const float* x, const float* weight, float eps, std::int64_t n, float* y) {
    const double squares = accumulate(n, [x](std::int64_t i, std::int64_t count, V acc) {
      const V v = load(x + i, count);
      return S::fma(v, v, acc);
    });
    multiply(x, weight, inverse_root(squares, static_cast<double>(eps), n), n, y);
  }

  static void add_rms_norm(const float* x, const float* r, const float* weight, float eps, std::int64_t n, float* sum,
                           float* y) {
    const double squares = accumulate(n, [=](std::int64_t i, std::int64_t count, V acc) {
      const V v = S::add(load(x + i, count), load(r + i, count));
      store(sum + i, count, v);
      return S::fma(v, v, acc);
    });
    multiply(sum, weight, inverse_root(squares, static_cast<double>(eps), n), n, y);
  }

  static void layer_norm(const float* x, const float* weight, const float* bias, float eps, std::int64_t n, float* y) {
    const double total =
        accumulate(n, [x](std::int64_t i, std::int64_t count, V acc) { return S::add(load(x + i, count), acc); });
    const V mean = S::set1(static_cast<float>(total / static_cast<double>(n)));
    // Deviations from the rounded mean; what rounding left is taken out of the variance again (two-pass with
    // correction, Chan, Golub & LeVeque 1983).
    lanes first;
    const double squares = accumulate(n, [&](std::int64_t i, std::int64_t count, V acc) {
      V d = S::sub(load(x + i, count), mean);
      if (count < S::width) d = keep(d, count);
      first.part[0] = S::add(first.part[0], d);
      return S::fma(d, d, acc);
    });
    const double rest = first.sum();
    const double corrected = squares - rest * rest / static_cast<double>(n);
    const double variance_sum = corrected > 0 ? corrected : 0;
    const V factor = S::set1(static_cast<float>(inverse_root(variance_sum, static_cast<double>(eps), n)));
    const V shift = S::set1(static_cast<float>(rest / static_cast<double>(n)));
    for (std::int64_t i = 0; i < n; i += S::width) {
      const std::int64_t count = n - i < S::width ? n - i : S::width;
      V v = S::mul(S::sub(S::sub(load(x + i, count), mean), shift), factor);
      if (weight) v = S::mul(v, load(weight + i, count));
      if (bias) v = S::add(v, load(bias + i, count));
      store(y + i, count, v);
    }
  }

  /// The first n elements, zeros behind.
  static V keep(V x, std::int64_t n) {
    alignas(64) float all[S::width];
    S::store(all, x);
    return S::load_part(all, n);
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
