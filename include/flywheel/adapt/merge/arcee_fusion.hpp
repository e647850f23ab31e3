// Arcee Fusion: takes over the numbers of the other model that matter most.
//   importance = |x - base| * KL(softmax(x) || softmax(base)), both of the whole row, probabilities plus 1e-8
//   out = x where importance >= median + 1.5 (third quartile - first), else base
// Quartiles are elements floor(q (n - 1)) in ascending order, of all elements; mergekit draws a sample of tensors with
// more than 10^6. A divergence below 0, which 1e-8 makes possible, counts as 0.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "flywheel/adapt/merge/parameters.hpp"
#include "flywheel/adapt/merge/selection.hpp"

namespace flywheel::inline v0::adapt::merge {

class arcee_fusion_merger final : public merger {
 public:
  explicit arcee_fusion_merger(const task& what)
      : select_({{rank(what.elements, 0.25), rank(what.elements, 0.5), rank(what.elements, 0.75)}}) {}

  [[nodiscard]] pass next_pass() const override { return {0, select_.counts()}; }
  [[nodiscard]] pass largest_pass() const override { return {0, select_.most_counts()}; }
  void look(const slice& s, std::span<const double>, collected out) const override {
    std::vector<float> scores(static_cast<std::size_t>(s.cols));
    for (std::int64_t r = 0; r < s.count; r += s.cols) {
      importance(s, r, scores.data());
      select_.look(
          0, s.cols, [&](std::int64_t i) { return scores[static_cast<std::size_t>(i)]; }, out.counts);
    }
  }
  void finish_pass(collected all) override {
    select_.finish(all.counts);
    const auto value = [&](std::size_t i) { return std::bit_cast<float>(select_.cuts(0)[i].key); };
    threshold_ = value(1) + 1.5F * (value(2) - value(0));
  }
  void combine(const slice& s, std::span<const double>, float* out) const override {
    std::vector<float> scores(static_cast<std::size_t>(s.cols));
    for (std::int64_t r = 0; r < s.count; r += s.cols) {
      importance(s, r, scores.data());
      for (std::int64_t i = 0; i < s.cols; ++i)
        out[r + i] = scores[static_cast<std::size_t>(i)] >= threshold_ ? s.models[0][r + i] : s.base[r + i];
    }
  }

 private:
  /// Counted from the largest, of element floor(q (n - 1)) counted from the smallest.
  [[nodiscard]] static std::uint64_t rank(std::int64_t n, double q) noexcept {
    return static_cast<std::uint64_t>(n) - static_cast<std::uint64_t>(q * static_cast<double>(n - 1));
  }
  /// Of the row that begins at element r of the slice.
  static void importance(const slice& s, std::int64_t r, float* out) {
    const float* const x = s.models[0] + r;
    const float* const base = s.base + r;
    constexpr double eps = 1e-8;
    const float top_x = *std::max_element(x, x + s.cols), top_base = *std::max_element(base, base + s.cols);
    double sum_x = 0, sum_base = 0, divergence = 0;
    for (std::int64_t i = 0; i < s.cols; ++i) {
      sum_x += std::exp(static_cast<double>(x[i] - top_x));
      sum_base += std::exp(static_cast<double>(base[i] - top_base));
    }
    for (std::int64_t i = 0; i < s.cols; ++i) {
      const double p = std::exp(static_cast<double>(x[i] - top_x)) / sum_x + eps;
      const double q = std::exp(static_cast<double>(base[i] - top_base)) / sum_base + eps;
      divergence += p * std::log(p / q);
    }
    const auto factor = static_cast<float>(std::max(divergence, 0.0));
    for (std::int64_t i = 0; i < s.cols; ++i) out[i] = std::abs(x[i] - base[i]) * factor;
  }

  selection select_;
  float threshold_ = 0;
};

inline constexpr method arcee_fusion{
    .name = "arcee_fusion",
    .base = base_use::required,
    .max_models = 1,
    .formula = "x where |x - base| KL(softmax(x) || softmax(base)) is above median + 1.5 quartile distances, else base",
    .start = [](const task& what) -> std::unique_ptr<merger> { return std::make_unique<arcee_fusion_merger>(what); }};

}  // namespace flywheel::inline v0::adapt::merge
