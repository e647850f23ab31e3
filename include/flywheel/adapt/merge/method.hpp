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
#include "flywheel/core/result.hpp"
#include "flywheel/core/tensor.hpp"

namespace flywheel::inline v0::adapt::merge {

/// A parameter of a method. Values are numbers; true is 1.
struct parameter_info {
  std::string_view name;  ///< As recipes write it: "density".
  bool per_model = false;
  double fallback = 0;    ///< Without a value.
  bool required = false;  ///< There is no fallback.
  double least = 0, most = 1;
  std::string_view what;  ///< For people.
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
};

/// One tensor to merge.
struct task {
  std::string_view name;
  std::int64_t elements = 0;
  std::int64_t cols = 0;
  std::size_t models = 0;
  bool base = false;
  std::uint64_t seed = 0;              ///< Of this tensor: made of the recipe's seed and the name.
  std::span<const double> parameters;  ///< The method's, in its order: [models] for each that is per_model, else one.
};

/// A method at work on one tensor.
class merger {
 public:
  virtual ~merger() = default;
  /// What the next pass collects; nothing more to look at when both are 0. Called again after each `finish_pass`.
  [[nodiscard]] virtual pass next_pass() const { return {}; }
  /// One slice's part. Several threads at once; `out` is zero before.
  virtual void look(const slice&, collected /*out*/) const {}
  /// What all slices gave together.
  virtual void finish_pass(collected /*all*/) {}
  /// The merged elements [slice.count]. Several threads at once. `before`: the sums that the last pass collected from
  /// the slices before this one (for ties that are resolved by order). `out` is none of the inputs.
  virtual void combine(const slice&, std::span<const double> before, float* out) const = 0;
};

enum class base_use : std::uint8_t { none, optional, required };

struct method {
  std::string_view name;  ///< "ties"
  base_use base = base_use::none;
  bool base_counts =
      false;  ///< A base that is also listed as a model is merged like one (linear); else it is left out.
  std::size_t min_models = 1, max_models = static_cast<std::size_t>(-1);
  std::span<const parameter_info> parameters;
  std::string_view formula;  ///< One line, with its source.
  std::unique_ptr<merger> (*start)(const task&) = nullptr;
};

/// Runs a method on whole tensors in memory, on this thread. `models` [n][elements]; `base` may be empty. The sizes
/// must fit the task.
inline void merge_tensor(const method& how, const task& what, std::span<const float* const> models, const float* base,
                         std::span<float> out) {
  const auto running = how.start(what);
  const slice all{models, base, 0, what.elements, what.cols};
  std::vector<double> sums;
  std::vector<std::uint64_t> counts;
  for (pass p = running->next_pass(); p.sums + p.counts > 0; p = running->next_pass()) {
    sums.assign(p.sums, 0);
    counts.assign(p.counts, 0);
    running->look(all, {sums, counts});
    running->finish_pass({sums, counts});
  }
  std::fill(sums.begin(), sums.end(), 0);
  running->combine(all, sums, out.data());
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
