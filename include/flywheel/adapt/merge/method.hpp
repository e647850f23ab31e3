// What a merge method is: an algorithm that looks at slices of one tensor of all models as often as it needs to, and
// then combines them slice by slice, so that no tensor has to be in memory as a whole. Header-only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::adapt::merge {

/// A parameter of a method. Values are numbers; true is 1.
struct parameter_info {
  std::string_view name;  ///< As recipes write it: "density".
  bool per_model = false;
  double fallback = 0;    ///< Without a value.
  bool required = false;  ///< There is no fallback.
  double least = 0, most = 1;
  std::string_view what;  ///< For people.
  /// Words that recipes may write instead of the numbers 0, 1, ...
  std::span<const std::string_view> words = {};
  bool ignored = false;  ///< Taken so that recipes run, and not looked at.
};

/// Whole rows of one tensor. Element i is number first + i of the tensor, in row-major order.
struct slice {
  std::span<const float* const> models;  ///< [n_models] -> [count]
  const float* base = nullptr;           ///< [count]; null without a base model.
  std::int64_t first = 0;
  std::int64_t count = 0;  ///< A multiple of cols.
  std::int64_t cols = 0;   ///< Of a row.
};

/// What a pass over all slices collects. Sums are added in the order of slices, counts in any order: nothing depends on
/// threads.
struct collected {
  std::span<double> sums;
  std::span<std::uint64_t> counts;
};
struct pass {
  std::size_t sums = 0, counts = 0;  ///< How many it collects.
  bool ordered = false;              ///< What follows wants its sums before each slice.
};

/// One tensor to merge. Fused experts [n, rows, cols] are one tensor, with one angle and one ranking for all of them.
struct task {
  std::string_view name;
  std::int64_t elements = 0;
  std::int64_t cols = 0;
  std::size_t models = 0;
  bool base = false;
  std::uint64_t seed = 0;              ///< Of this tensor: made of the recipe's seed and the name.
  std::span<const double> parameters;  ///< The method's, in its order: [models] for each that is per_model, else one.
};

/// A method at work on one tensor. `before` is what the last ordered pass added up in the slices before this one, for
/// ties that are resolved by order; empty without such a pass. Functions may throw std::bad_alloc.
class merger {
 public:
  virtual ~merger() = default;
  /// What the next pass collects; nothing more to look at when both are 0. Called again after each `finish_pass`.
  [[nodiscard]] virtual pass next_pass() const { return {}; }
  /// At least what any pass collects; asked before the first one.
  [[nodiscard]] virtual pass largest_pass() const { return next_pass(); }
  /// Adds one slice's part. Several threads at once.
  virtual void look(const slice&, std::span<const double> /*before*/, collected /*out*/) const {}
  /// What all slices gave together.
  virtual void finish_pass(collected /*all*/) {}
  /// The merged elements [slice.count]. Several threads at once. `out` is none of the inputs.
  virtual void combine(const slice&, std::span<const double> before, float* out) const = 0;
};

enum class base_use : std::uint8_t { none, optional, required };

/// Plain data; each method's header has one.
struct method {
  std::string_view name;  ///< "ties"
  base_use base = base_use::none;
  /// A base that is also listed as a model is merged like one (linear); else it is left out.
  bool base_counts = false;
  std::size_t min_models = 1, max_models = static_cast<std::size_t>(-1);
  std::span<const parameter_info> parameters = {};
  std::string_view formula = {};  ///< One line, with its source.
  std::unique_ptr<merger> (*start)(const task&) = nullptr;
  /// Why numbers that are each in range do not go together; empty when they do. May be null: they always do.
  std::string_view (*refuses)(const task&) = nullptr;
};

/// The values of a parameter: [models] where it is per_model, else [1].
[[nodiscard]] inline std::span<const double> values_of(std::span<const parameter_info> all, const task& what,
                                                       std::string_view name) noexcept {
  std::size_t at = 0;
  for (const parameter_info& one : all) {
    const std::size_t n = one.per_model ? what.models : 1;
    if (one.name == name) return what.parameters.subspan(at, n);
    at += n;
  }
  return {};
}

/// How many rows slices have: about 2^16 elements, which stay in a core's cache for a few models. Sums are rounded
/// slice by slice, so this number is part of the results.
[[nodiscard]] constexpr std::int64_t slice_rows(std::int64_t cols) noexcept {
  return cols >= (std::int64_t{1} << 16) ? 1 : (std::int64_t{1} << 16) / std::max<std::int64_t>(1, cols);
}

/// Runs a method on whole tensors in memory, on this thread. `models` [n][elements]; `base` may be null. The sizes must
/// fit the task; without cols, the tensor is one row. Throws std::bad_alloc.
inline void merge_tensor(const method& how, task what, std::span<const float* const> models, const float* base,
                         std::span<float> out) {
  if (what.cols <= 0) what.cols = what.elements;
  if (what.elements <= 0) return;
  const auto running = how.start(what);
  const std::int64_t step = slice_rows(what.cols) * what.cols;
  std::vector<const float*> parts(models.size());
  const auto for_slices = [&](auto&& visit) {
    for (std::int64_t first = 0; first < what.elements; first += step) {
      for (std::size_t m = 0; m < parts.size(); ++m) parts[m] = models[m] + first;
      visit(slice{parts, base == nullptr ? nullptr : base + first, first, std::min(step, what.elements - first),
                  what.cols});
    }
  };
  std::vector<double> sums, part, before;  // before: [slices][sums of the last ordered pass]
  std::vector<std::uint64_t> counts;
  std::size_t width = 0;
  const auto before_slice = [&](std::int64_t first) {
    return std::span<const double>(before).subspan(static_cast<std::size_t>(first / step) * width, width);
  };
  for (pass p = running->next_pass(); p.sums + p.counts > 0; p = running->next_pass()) {
    std::vector<double> next;
    sums.assign(p.sums, 0);
    counts.assign(p.counts, 0);
    for_slices([&](const slice& s) {
      if (p.ordered) next.insert(next.end(), sums.begin(), sums.end());
      part.assign(p.sums, 0);
      running->look(s, before_slice(s.first), {part, counts});
      for (std::size_t i = 0; i < p.sums; ++i) sums[i] += part[i];
    });
    running->finish_pass({sums, counts});
    if (p.ordered) before = std::move(next), width = p.sums;
  }
  for_slices([&](const slice& s) { running->combine(s, before_slice(s.first), out.data() + s.first); });
}

/// The seed of one tensor.
[[nodiscard]] constexpr std::uint64_t tensor_seed(std::uint64_t recipe, std::string_view name) noexcept {
  std::uint64_t x = recipe ^ 0xcbf29ce484222325ULL;
  for (const char c : name) x = (x ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;  // FNV-1a
  return x;
}

/// Uniform in [0, 1): a pure function, so that random masks do not depend on how a tensor was cut.
[[nodiscard]] inline double uniform(std::uint64_t seed, std::uint64_t model, std::uint64_t element) noexcept {
  std::uint64_t x = seed + 0x9e3779b97f4a7c15ULL * (model + 1) + 0xd1342543de82ef95ULL * (element + 1);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;  // SplitMix64's finalizer (Steele, Lea & Flood 2014)
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  x ^= x >> 31;
  return static_cast<double>(x >> 11) * 0x1p-53;
}

}  // namespace flywheel::inline v0::adapt::merge
