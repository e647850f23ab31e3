// Methods whose result is a linear combination of their inputs, with coefficients that are given, or that depend on the
// inputs' scalar products alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "flywheel/adapt/merge/method.hpp"

namespace flywheel::inline v0::adapt::merge {

/// As combine_linearly, with sums of this type.
template <class Sum>
void combine_in(std::span<const float* const> x, std::span<const double> c, const float* origin, std::int64_t n,
                float* out) {
  constexpr std::int64_t tile = 2048;  // sums stay in L1
  Sum sums[tile];
  for (std::int64_t first = 0; first < n; first += tile) {
    const std::int64_t count = std::min(tile, n - first);
    float* const to = out + first;
    const float* const zero = origin == nullptr ? nullptr : origin + first;
    std::fill_n(sums, count, Sum{0});
    for (std::size_t m = 0; m < x.size(); ++m) {
      const auto factor = static_cast<Sum>(c[m]);
      const float* const from = x[m] + first;
      if (zero == nullptr)
        for (std::int64_t i = 0; i < count; ++i) sums[i] += factor * static_cast<Sum>(from[i]);
      else
        for (std::int64_t i = 0; i < count; ++i) sums[i] += factor * static_cast<Sum>(from[i] - zero[i]);
    }
    if (zero == nullptr)
      for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(sums[i]);
    else  // last, so that small differences add up before they meet it
      for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(static_cast<Sum>(zero[i]) + sums[i]);
  }
}

/// out = sum of c_i x_i; with an origin: origin + sum of c_i (x_i - origin). [n] each. Large coefficients, as vectors
/// in nearly opposite directions have, cancel each other, and are summed in double precision.
inline void combine_linearly(std::span<const float* const> x, std::span<const double> c, const float* origin,
                             std::int64_t n, float* out) {
  constexpr double large = 16;
  if (std::any_of(c.begin(), c.end(), [](double one) { return std::abs(one) > large; }))
    combine_in<double>(x, c, origin, n, out);
  else
    combine_in<float>(x, c, origin, n, out);
}

/// (a - origin) . (b - origin), in double precision; origin may be null.
[[nodiscard]] inline double dot(const float* a, const float* b, const float* origin, std::int64_t n) {
  constexpr std::int64_t lanes = 8;  // sums of their own, so that compilers vectorise without reordering any
  double sums[lanes] = {};
  const auto whole = [&](auto value) {
    std::int64_t i = 0;
    for (; i + lanes <= n; i += lanes)
      for (std::int64_t j = 0; j < lanes; ++j) sums[j] += value(a, i + j) * value(b, i + j);
    for (std::int64_t j = 0; i + j < n; ++j) sums[j] += value(a, i + j) * value(b, i + j);
  };
  if (origin == nullptr)
    whole([](const float* x, std::int64_t i) { return static_cast<double>(x[i]); });
  else
    whole([origin](const float* x, std::int64_t i) { return static_cast<double>(x[i] - origin[i]); });
  double sum = 0;
  for (const double s : sums) sum += s;
  return sum;
}

/// Scalar products of n vectors with each other.
class gram {
 public:
  gram(std::span<const double> products, std::size_t n) noexcept : products_(products), n_(n) {}
  [[nodiscard]] static constexpr std::size_t pairs(std::size_t n) noexcept { return n * (n + 1) / 2; }
  [[nodiscard]] static constexpr std::size_t pair(std::size_t i, std::size_t j) noexcept {
    return i < j ? pairs(j) + i : pairs(i) + j;
  }
  [[nodiscard]] double operator()(std::size_t i, std::size_t j) const noexcept { return products_[pair(i, j)]; }
  [[nodiscard]] double norm(std::size_t i) const noexcept { return std::sqrt((*this)(i, i)); }
  /// Of the angle between two, clamped; 0 where one is shorter than `shortest`.
  [[nodiscard]] double cosine(std::size_t i, std::size_t j, double shortest) const noexcept {
    const double ni = norm(i), nj = norm(j);
    return ni > shortest && nj > shortest ? std::clamp((*this)(i, j) / (ni * nj), -1.0, 1.0) : 0;
  }
  [[nodiscard]] std::size_t size() const noexcept { return n_; }

 private:
  std::span<const double> products_;
  std::size_t n_;
};

/// Coefficients that are known before.
class weighted_merger final : public merger {
 public:
  /// With `around_base`, of differences from the base.
  weighted_merger(std::vector<double> c, bool around_base) : c_(std::move(c)), around_base_(around_base) {}
  void combine(const slice& s, std::span<const double>, float* out) const override {
    combine_linearly(s.models, c_, around_base_ ? s.base : nullptr, s.count, out);
  }

 private:
  std::vector<double> c_;
  bool around_base_;
};
/// The one model as it is.
[[nodiscard]] inline std::unique_ptr<merger> unchanged() {
  return std::make_unique<weighted_merger>(std::vector<double>{1}, false);
}

/// What is a vector of its own, with coefficients of its own.
enum class vectors : std::uint8_t { tensor, rows, columns };

/// Coefficients from scalar products: `Rule` is callable as rule(const gram&, std::span<double> c).
template <class Rule>
class gram_merger final : public merger {
 public:
  /// The base is the first vector (base_first), or else the origin that all are differences from, where there is one.
  gram_merger(Rule rule, const task& what, vectors of, bool base_first = false)
      : rule_(std::move(rule)),
        n_(what.models + (base_first ? 1 : 0)),
        cols_(what.cols),
        of_(of),
        base_first_(base_first) {}

  [[nodiscard]] pass next_pass() const override {
    if (of_ == vectors::rows || !c_.empty()) return {};
    return {gram::pairs(n_) * (of_ == vectors::columns ? static_cast<std::size_t>(cols_) : 1)};
  }

  void look(const slice& s, std::span<const double>, collected out) const override {
    const std::vector<const float*> x = vectors_of(s);
    const float* const origin = origin_of(s);
    for (std::size_t i = 0; i < n_; ++i)
      for (std::size_t j = 0; j <= i; ++j) {
        if (of_ == vectors::tensor) {
          out.sums[gram::pair(i, j)] += dot(x[i], x[j], origin, s.count);
          continue;
        }
        double* const sums = out.sums.data() + gram::pair(i, j) * static_cast<std::size_t>(cols_);
        for (std::int64_t r = 0; r < s.count; r += cols_)
          for (std::int64_t k = 0; k < cols_; ++k) {
            const float zero = origin == nullptr ? 0.0F : origin[r + k];
            sums[k] += static_cast<double>(x[i][r + k] - zero) * static_cast<double>(x[j][r + k] - zero);
          }
      }
  }

  void finish_pass(collected all) override {
    const std::size_t of_each = all.sums.size() / gram::pairs(n_);
    std::vector<double> products(gram::pairs(n_));
    c_.resize(n_ * of_each);
    for (std::size_t k = 0; k < of_each; ++k) {
      for (std::size_t p = 0; p < products.size(); ++p) products[p] = all.sums[p * of_each + k];
      const std::vector<double> c = coefficients(products);
      for (std::size_t i = 0; i < n_; ++i) c_[i * of_each + k] = c[i];
    }
  }

  void combine(const slice& s, std::span<const double>, float* out) const override {
    std::vector<const float*> x = vectors_of(s);
    const float* const origin = origin_of(s);
    if (of_ == vectors::tensor) return combine_linearly(x, c_, origin, s.count, out);
    std::vector<double> products(gram::pairs(n_));
    for (std::int64_t r = 0; r < s.count; r += cols_) {
      const float* const zero = origin == nullptr ? nullptr : origin + r;
      if (of_ == vectors::columns) {
        combine_columns(x, zero, out + r);
      } else {
        for (std::size_t i = 0; i < n_; ++i)
          for (std::size_t j = 0; j <= i; ++j) products[gram::pair(i, j)] = dot(x[i], x[j], zero, cols_);
        combine_linearly(x, coefficients(products), zero, cols_, out + r);
      }
      for (const float*& vector : x) vector += cols_;
    }
  }

 private:
  [[nodiscard]] std::vector<double> coefficients(std::span<const double> products) const {
    std::vector<double> c(n_);
    rule_(gram(products, n_), std::span(c));
    return c;
  }
  [[nodiscard]] const float* origin_of(const slice& s) const noexcept { return base_first_ ? nullptr : s.base; }
  [[nodiscard]] std::vector<const float*> vectors_of(const slice& s) const {
    std::vector<const float*> x(s.models.begin(), s.models.end());
    if (base_first_) x.insert(x.begin(), s.base);
    return x;
  }
  void combine_columns(const std::vector<const float*>& x, const float* origin, float* out) const {
    for (std::int64_t k = 0; k < cols_; ++k) {
      const float zero = origin == nullptr ? 0.0F : origin[k];
      double sum = 0;
      for (std::size_t i = 0; i < n_; ++i)
        sum +=
            c_[i * static_cast<std::size_t>(cols_) + static_cast<std::size_t>(k)] * static_cast<double>(x[i][k] - zero);
      out[k] = static_cast<float>(static_cast<double>(zero) + sum);
    }
  }

  Rule rule_;
  std::size_t n_;
  std::int64_t cols_;
  vectors of_;
  bool base_first_;
  std::vector<double> c_;  ///< [n], or [n][cols] of columns
};

template <class Rule>
[[nodiscard]] std::unique_ptr<merger> start_gram(Rule rule, const task& what, vectors of, bool base_first = false) {
  return std::make_unique<gram_merger<Rule>>(std::move(rule), what, of, base_first);
}

}  // namespace flywheel::inline v0::adapt::merge
