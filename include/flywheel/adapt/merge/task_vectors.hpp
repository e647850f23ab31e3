// Methods that work on task vectors, the differences of fine-tuned models from their base (Ilharco et al. 2023):
//   delta_m = x_m - base          thinned out by a sparsifier (none, by magnitude, at random, ...)
//   out = base + lambda * sum of w_m delta_m / normaliser
// with a sign elected for every element or not (Yadav et al. 2023): that of the sum of weighted deltas, + where it is
// 0; deltas of the other sign and zeros do not take part. The normaliser is 1, or the sum of the weights that take part
// (1 where that is 0).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "flywheel/adapt/merge/method.hpp"
#include "flywheel/adapt/merge/parameters.hpp"

namespace flywheel::inline v0::adapt::merge {

/// How thinned deltas of a few elements become one.
struct consensus {
  bool elect = false;          ///< Signs.
  std::vector<float> votes;    ///< [models]: factors of deltas in the election,
  std::vector<float> shares;   ///< then of what takes part,
  std::vector<float> weights;  ///< and what it adds to the divisor.
  bool normalize = false;
  float least_divisor = -std::numeric_limits<float>::infinity();
  float lambda = 1;

  /// `deltas` [models][stride], of which the first n; `scratch` [2 n].
  void operator()(const float* deltas, std::int64_t stride, const float* base, std::int64_t n, float* scratch,
                  float* out) const {
    const std::size_t models = votes.size();
    const auto of = [&](std::size_t m) { return deltas + static_cast<std::int64_t>(m) * stride; };
    // Copies, since what is written could be members for all a compiler knows.
    const float factor = lambda, least = least_divisor;
    std::fill_n(out, n, 0.0F);
    if (elect) {
      float* const sign = scratch;
      float* const divisor = scratch + n;
      std::fill_n(sign, 2 * n, 0.0F);
      for (std::size_t m = 0; m < models; ++m) {
        const float* const d = of(m);
        const float vote = votes[m];
        for (std::int64_t i = 0; i < n; ++i) sign[i] += vote * d[i];
      }
      for (std::int64_t i = 0; i < n; ++i) sign[i] = sign[i] >= 0 ? 1.0F : -1.0F;
      for (std::size_t m = 0; m < models; ++m) {
        const float* const d = of(m);
        const float vote = votes[m], share = shares[m], weight = weights[m];
        for (std::int64_t i = 0; i < n; ++i) {
          const float vowed = vote * d[i] * sign[i];  // positive: of the elected sign
          const float agreed = vowed > 0 ? vowed : 0.0F, counted = vowed > 0 ? weight : 0.0F;
          out[i] += agreed * share;
          divisor[i] += counted;
        }
      }
      if (normalize)
        for (std::int64_t i = 0; i < n; ++i) {
          const float d = divisor[i] == 0 ? 1.0F : divisor[i];
          sign[i] /= d < least ? least : d;
        }
      for (std::int64_t i = 0; i < n; ++i) out[i] = base[i] + factor * (sign[i] * out[i]);
      return;
    }
    float sum = 0;
    for (std::size_t m = 0; m < models; ++m) {
      const float* const d = of(m);
      const float share = votes[m] * shares[m];
      sum += weights[m];
      for (std::int64_t i = 0; i < n; ++i) out[i] += share * d[i];
    }
    const float scale = normalize && std::abs(sum) >= 1e-8F ? factor / sum : factor;
    for (std::int64_t i = 0; i < n; ++i) out[i] = base[i] + scale * out[i];
  }
};

/// A few rows of one model, as differences from the base.
struct delta_rows {
  const float* model;
  const float* base;
  std::int64_t first;  ///< Number of the first element within the tensor.
  std::int64_t count;  ///< A multiple of cols.
  std::int64_t cols;
  [[nodiscard]] float operator()(std::int64_t i) const noexcept { return model[i] - base[i]; }
};

/// Calls visit(first, count) for whole rows of about 2048 elements.
template <class Visit>
void for_tiles(const slice& s, Visit visit) {
  const std::int64_t step = std::max<std::int64_t>(1, 2048 / std::max<std::int64_t>(1, s.cols)) * s.cols;
  for (std::int64_t first = 0; first < s.count; first += step) visit(first, std::min(step, s.count - first));
}
[[nodiscard]] inline std::size_t tile_size(const slice& s) noexcept {
  return static_cast<std::size_t>(
      std::min(s.count, std::max<std::int64_t>(1, 2048 / std::max<std::int64_t>(1, s.cols)) * s.cols));
}

/// What makes up for dropped elements.
enum class rescaling : std::uint8_t { none, expectation, l1, l2 };

/// The numbers of a task-vector method whose parameters have the usual names.
struct task_vector_numbers {
  std::vector<float> weights;
  bool normalize = false;
  float lambda = 1;
  rescaling rescale = rescaling::none;

  task_vector_numbers(std::span<const parameter_info> all, const task& what)
      : weights(floats_of(all, what, "weight")),
        normalize(value_of(all, what, "normalize") != 0),
        lambda(static_cast<float>(value_of(all, what, "lambda"))) {
    if (!values_of(all, what, "rescale_norm").empty() && value_of(all, what, "rescale") != 0)
      rescale = static_cast<rescaling>(1 + static_cast<int>(value_of(all, what, "rescale_norm")));
  }
};

/// `Sparsifier` is a class with passes, as selection has them:
///   std::size_t counts() const, most_counts() const;
///   void look(m, delta_rows, counts) const;
///   void finish(counts);
/// with ties, 0 of them where order plays no part:
///   std::size_t ties() const, most_ties() const;
///   void count_ties(m, delta_rows, double* sums [ties]) const;
/// and with walks that thin a model's rows of one slice, in order, and with expectation divide a number by its chance:
///   walk start(m, const double* ties_before) const;
///   void walk::next(delta_rows, bool expectation, float* out);
template <class Sparsifier>
class task_vector_merger final : public merger {
 public:
  task_vector_merger(Sparsifier thin, task_vector_numbers numbers, bool elect)
      : thin_(std::move(thin)), models_(numbers.weights.size()), rescale_(numbers.rescale) {
    rule_.elect = elect;
    rule_.votes = numbers.weights;
    rule_.weights = std::move(numbers.weights);
    rule_.shares.assign(models_, 1);
    rule_.normalize = numbers.normalize;
    rule_.lambda = numbers.lambda;
    to_next_stage();
  }

  [[nodiscard]] pass next_pass() const override {
    switch (stage_) {
      case stage::select:
        return {0, thin_.counts()};
      case stage::ties:
        return {models_ * thin_.ties(), 0, true};
      case stage::norms:
        return {models_ * 2};
      default:
        return {};
    }
  }

  [[nodiscard]] pass largest_pass() const override {
    return {models_ * std::max<std::size_t>(2, thin_.most_ties()), thin_.most_counts(), thin_.most_ties() > 0};
  }

  void look(const slice& s, std::span<const double> before, collected out) const override {
    if (stage_ == stage::norms) return look_at_norms(s, before, out.sums.data());
    for (std::size_t m = 0; m < models_; ++m) {
      const delta_rows rows{s.models[m], s.base, s.first, s.count, s.cols};
      if (stage_ == stage::select)
        thin_.look(m, rows, out.counts);
      else
        thin_.count_ties(m, rows, out.sums.data() + m * thin_.ties());
    }
  }

  void finish_pass(collected all) override {
    if (stage_ == stage::select) {
      thin_.finish(all.counts);
      if (thin_.counts() > 0) return;
    }
    if (stage_ == stage::norms)
      for (std::size_t m = 0; m < models_; ++m) {
        double whole = all.sums[2 * m], kept = all.sums[2 * m + 1];
        if (rescale_ == rescaling::l2) whole = std::sqrt(whole), kept = std::sqrt(kept);
        constexpr double least = 1e-7;
        if (whole >= least && kept >= least) rule_.votes[m] *= static_cast<float>(whole / kept);
      }
    to_next_stage();
  }

  void combine(const slice& s, std::span<const double> before, float* out) const override {
    const std::size_t tile = tile_size(s);
    std::vector<float> memory((models_ + 2) * tile);
    for_thinned(s, before, memory.data(), tile, [&](std::int64_t first, std::int64_t count) {
      rule_(memory.data(), static_cast<std::int64_t>(tile), s.base + first, count, memory.data() + models_ * tile,
            out + first);
    });
  }

 private:
  enum class stage : std::uint8_t { begin, select, ties, norms, end };

  void to_next_stage() {
    const auto wanted = [this] {
      switch (stage_) {
        case stage::select:
          return thin_.counts() > 0;
        case stage::ties:
          return thin_.ties() > 0;
        case stage::norms:
          return rescale_ == rescaling::l1 || rescale_ == rescaling::l2;
        default:
          return true;
      }
    };
    do stage_ = static_cast<stage>(static_cast<int>(stage_) + 1);
    while (!wanted());
  }

  /// Calls visit(first, count) when `deltas` [models][tile] hold these elements, thinned.
  template <class Visit>
  void for_thinned(const slice& s, std::span<const double> before, float* deltas, std::size_t tile, Visit visit) const {
    using walk = decltype(thin_.start(0, nullptr));
    std::vector<walk> walks;
    for (std::size_t m = 0; m < models_; ++m)
      walks.push_back(thin_.start(m, before.empty() ? nullptr : before.data() + m * thin_.ties()));
    for_tiles(s, [&](std::int64_t first, std::int64_t count) {
      for (std::size_t m = 0; m < models_; ++m)
        walks[m].next({s.models[m] + first, s.base + first, s.first + first, count, s.cols},
                      rescale_ == rescaling::expectation, deltas + m * tile);
      visit(first, count);
    });
  }

  void look_at_norms(const slice& s, std::span<const double> before, double* sums) const {
    const std::size_t tile = tile_size(s);
    std::vector<float> deltas(models_ * tile);
    for_thinned(s, before, deltas.data(), tile, [&](std::int64_t first, std::int64_t count) {
      for (std::size_t m = 0; m < models_; ++m) {
        const delta_rows whole{s.models[m] + first, s.base + first, 0, count, s.cols};
        const float* const kept = deltas.data() + m * tile;
        sums[2 * m] += norm_of(count, whole);
        sums[2 * m + 1] += norm_of(count, [kept](std::int64_t i) { return kept[i]; });
      }
    });
  }
  /// The sum of magnitudes, or of squares.
  template <class Value>
  [[nodiscard]] double norm_of(std::int64_t n, Value value) const {
    double sum = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const double v = value(i);
      sum += rescale_ == rescaling::l2 ? v * v : std::abs(v);
    }
    return sum;
  }

  Sparsifier thin_;
  std::size_t models_;
  rescaling rescale_;
  consensus rule_;
  stage stage_ = stage::begin;
};

template <class Sparsifier>
[[nodiscard]] std::unique_ptr<merger> start_task_vectors(std::span<const parameter_info> all, const task& what,
                                                         Sparsifier thin, bool elect) {
  return std::make_unique<task_vector_merger<Sparsifier>>(std::move(thin), task_vector_numbers(all, what), elect);
}

/// A sparsifier without passes of its own.
struct passless {
  [[nodiscard]] std::size_t counts() const noexcept { return 0; }
  [[nodiscard]] std::size_t most_counts() const noexcept { return 0; }
  [[nodiscard]] std::size_t most_ties() const noexcept { return 0; }
  void look(std::size_t, const delta_rows&, std::span<std::uint64_t>) const noexcept {}
  void finish(std::span<const std::uint64_t>) noexcept {}
  [[nodiscard]] std::size_t ties() const noexcept { return 0; }
  void count_ties(std::size_t, const delta_rows&, double*) const noexcept {}
};

}  // namespace flywheel::inline v0::adapt::merge
