// SCE (Wan et al. 2024, "FuseChat"), of task vectors:
//   select: positions whose variance over the models is among the int(select_topk v) largest, v: those that have any
//   calculate: weights W_m, the mean square of what is left of a model's task vector, divided by the sum of them
//   erase: what has not the elected sign (task_vectors.hpp; deltas vote unweighted)
//   out = base + sum of W_m delta_m / sum of W_m, over what is left
// Of equal variances the lower index is the larger. As in mergekit, weights are equal where the mean squares add up to
// less than 1e-6, and divisors are at least 1e-6; the paper has neither.
#pragma once

#include <cmath>

#include "flywheel/adapt/merge/selection.hpp"
#include "flywheel/adapt/merge/task_vectors.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr parameter_info sce_parameters[] = {
    {"select_topk", false, 1, false, 0, 1, "Share of positions that is kept"}, int8_mask_parameter};

class sce_merger final : public merger {
 public:
  sce_merger(const task& what, double share)
      : models_(what.models),
        elements_(what.elements),
        share_(share),
        select_(std::vector<std::vector<std::uint64_t>>{{1}}) {
    rule_.elect = rule_.normalize = true;
    rule_.votes.assign(models_, 1);
    rule_.least_divisor = 1e-6F;
    if (share_ >= 1 || share_ <= 0) stage_ = stage::squares;
  }

  [[nodiscard]] pass next_pass() const override {
    switch (stage_) {
      case stage::select:
        return {0, select_.counts() + 1};
      case stage::ties:
        return {1, 0, true};
      case stage::squares:
        return {models_};
      default:
        return {};
    }
  }

  [[nodiscard]] pass largest_pass() const override { return {models_, select_.most_counts() + 1, true}; }

  void look(const slice& s, std::span<const double> before, collected out) const override {
    if (stage_ == stage::squares) {
      std::vector<float> memory((models_ + 1) * tile_size(s));
      for_selected(s, before, memory, [&](std::int64_t, std::int64_t n) {
        for (std::size_t m = 0; m < models_; ++m) {
          const float* const d = memory.data() + m * tile_size(s);
          out.sums[m] += dot(d, d, n);
        }
      });
      return;
    }
    std::vector<float> variances(tile_size(s));
    const auto value = [&variances](std::int64_t i) { return variances[static_cast<std::size_t>(i)]; };
    for_tiles(s, [&](std::int64_t first, std::int64_t n) {
      variance(s, first, n, variances.data());
      if (stage_ == stage::ties) {
        out.sums[0] += static_cast<double>(count_equal(select_.cuts(0)[0], n, value));
      } else {
        select_.look(0, n, value, out.counts);
        for (std::int64_t i = 0; i < n; ++i) out.counts.back() += value(i) > 0 ? 1 : 0;
      }
    });
  }

  void finish_pass(collected all) override {
    if (stage_ == stage::select) {
      if (!counted_) {
        counted_ = true;
        select_.set_rank(0, 0, static_cast<std::uint64_t>(share_ * static_cast<double>(all.counts.back())));
      }
      select_.finish(all.counts);
      if (select_.counts() > 0) return;
      stage_ = select_.ordered() ? stage::ties : stage::squares;
    } else if (stage_ == stage::ties) {
      stage_ = stage::squares;
    } else {
      double sum = 0;
      for (double& square : all.sums) sum += square /= static_cast<double>(elements_);
      for (const double square : all.sums)
        rule_.shares.push_back(static_cast<float>(sum < 1e-6 ? 1.0 / static_cast<double>(models_) : square / sum));
      rule_.weights = rule_.shares;
      stage_ = stage::end;
    }
  }

  void combine(const slice& s, std::span<const double> before, float* out) const override {
    const std::size_t tile = tile_size(s);
    std::vector<float> memory((models_ + 1) * tile), scratch(2 * tile);
    for_selected(s, before, memory, [&](std::int64_t first, std::int64_t n) {
      rule_(memory.data(), static_cast<std::int64_t>(tile), s.base + first, n, scratch.data(), out + first);
    });
  }

 private:
  enum class stage : std::uint8_t { select, ties, squares, end };

  [[nodiscard]] static double dot(const float* a, const float* b, std::int64_t n) noexcept {
    double sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    return sum;
  }

  /// Over the models, of n elements. In double precision, where the mean of equal numbers is that number: they have no
  /// variance, nor do others differ by the order of the models.
  void variance(const slice& s, std::int64_t first, std::int64_t n, float* out) const {
    const auto count = static_cast<double>(models_);
    for (std::int64_t i = 0; i < n; ++i) {
      const float zero = s.base[first + i];
      double mean = 0, sum = 0;
      for (const float* const x : s.models) mean += static_cast<double>(x[first + i] - zero);
      mean /= count;
      for (const float* const x : s.models) {
        const double off = static_cast<double>(x[first + i] - zero) - mean;
        sum += off * off;
      }
      out[i] = static_cast<float>(sum / count);
    }
  }

  /// Calls visit(first, n) when `memory` [models + 1][tile] begins with these elements' deltas, 0 where not selected.
  template <class Visit>
  void for_selected(const slice& s, std::span<const double> before, std::vector<float>& memory, Visit visit) const {
    const std::size_t tile = tile_size(s);
    cut_walk walk(select_.cuts(0)[0], before.empty() ? 0 : before[0]);
    float* const variances = memory.data() + models_ * tile;
    std::vector<std::int32_t> keys(tile);
    std::vector<std::uint32_t> in(tile, share_ <= 0 ? 0U : ~0U);
    for_tiles(s, [&](std::int64_t first, std::int64_t n) {
      if (share_ > 0 && share_ < 1) {
        variance(s, first, n, variances);
        for (std::int64_t i = 0; i < n; ++i)
          keys[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(magnitude(variances[i]));
        walk.next(keys.data(), n, in.data());
      }
      for (std::size_t m = 0; m < models_; ++m) {
        const delta_rows rows{s.models[m] + first, s.base + first, 0, n, s.cols};
        float* const to = memory.data() + m * tile;
        for (std::int64_t i = 0; i < n; ++i) to[i] = in[static_cast<std::size_t>(i)] != 0 ? rows(i) : 0.0F;
      }
      visit(first, n);
    });
  }

  std::size_t models_;
  std::int64_t elements_;
  double share_;
  selection select_;
  bool counted_ = false;
  consensus rule_;
  stage stage_ = stage::select;
};

inline constexpr method sce{
    .name = "sce",
    .base = base_use::required,
    .parameters = sce_parameters,
    .formula = "base + mean of deltas of the elected sign, weighted by their mean squares (Wan et al. 2024)",
    .start = [](const task& what) -> std::unique_ptr<merger> {
      return std::make_unique<sce_merger>(what, value_of(sce_parameters, what, "select_topk"));
    }};

}  // namespace flywheel::inline v0::adapt::merge
