// DELLA (Deep et al. 2024): an element of a task vector is kept at random, with a probability that grows with its rank
// r in its row, from density - epsilon for the smallest to density + epsilon for the largest: p = density - epsilon + 2
// epsilon r / (cols - 1); a negative epsilon favours the smallest. Of equal magnitudes the lower index is the larger.
// The paper divides what is kept by p (rescale_norm density); mergekit's rescaling, the default here too, gives the
// tensor the L1 norm it had. della also elects signs (ties.hpp), della_linear does not.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "flywheel/adapt/merge/selection.hpp"
#include "flywheel/adapt/merge/task_vectors.hpp"

namespace flywheel::inline v0::adapt::merge {

[[nodiscard]] constexpr auto della_parameters(bool normalize) noexcept {
  return std::array<parameter_info, 8>{
      weight_parameter,
      density_parameter,
      parameter_info{"epsilon", true, 0.15, false, -0.5, 0.5, "How far p is from density"},
      normalize_parameter(normalize),
      lambda_parameter,
      rescale_parameter(true),
      rescale_norm_parameter,
      int8_mask_parameter};
}
inline constexpr auto della_ties_parameters = della_parameters(true), della_linear_parameters = della_parameters(false);

class ranked_choice : public passless {
 public:
  ranked_choice(std::vector<double> density, std::vector<double> epsilon, std::uint64_t seed)
      : density_(std::move(density)), epsilon_(std::move(epsilon)), seed_(seed) {}
  struct walk {
    double density, epsilon;
    std::uint64_t seed, model;
    std::vector<std::uint64_t> order;  ///< Of one row: magnitude, then index from its end; sorts ascending by rank.

    void next(const delta_rows& rows, bool expectation, float* out) {
      if (density >= 1 || density <= 0) {
        for (std::int64_t i = 0; i < rows.count; ++i) out[i] = density >= 1 ? rows(i) : 0.0F;
        return;
      }
      const auto n = static_cast<std::size_t>(rows.cols);
      const double lowest = n > 1 ? density - epsilon : density;
      const double step = n > 1 ? 2 * epsilon / static_cast<double>(n - 1) : 0;
      order.resize(n);
      for (std::int64_t row = 0; row < rows.count; row += rows.cols) {
        for (std::size_t i = 0; i < n; ++i)
          order[i] =
              static_cast<std::uint64_t>(magnitude(rows(row + static_cast<std::int64_t>(i)))) << 32 | (n - 1 - i);
        std::sort(order.begin(), order.end());
        for (std::size_t rank = 0; rank < n; ++rank) {
          const auto i = row + static_cast<std::int64_t>(n - 1 - (order[rank] & 0xffffffffU));
          const double p = lowest + step * static_cast<double>(rank);
          const bool kept = uniform(seed, model, static_cast<std::uint64_t>(rows.first + i)) < p;
          out[i] = kept ? rows(i) * (expectation ? static_cast<float>(1 / p) : 1.0F) : 0.0F;
        }
      }
    }
  };
  [[nodiscard]] walk start(std::size_t m, const double*) const { return {density_[m], epsilon_[m], seed_, m, {}}; }

 private:
  std::vector<double> density_, epsilon_;
  std::uint64_t seed_;
};

[[nodiscard]] inline std::unique_ptr<merger> start_della(const task& what, bool elect) {
  const std::span<const parameter_info> all = elect ? della_ties_parameters : della_linear_parameters;
  const auto density = values_of(all, what, "density"), epsilon = values_of(all, what, "epsilon");
  return start_task_vectors(
      all, what, ranked_choice({density.begin(), density.end()}, {epsilon.begin(), epsilon.end()}, what.seed), elect);
}

[[nodiscard]] inline std::string_view refuse_della(const task& what) noexcept {
  const auto density = values_of(della_ties_parameters, what, "density");
  const auto epsilon = values_of(della_ties_parameters, what, "epsilon");
  for (std::size_t m = 0; m < what.models; ++m)
    if (const double far = std::abs(epsilon[m]);
        density[m] > 0 && density[m] < 1 && (density[m] - far <= 0 || density[m] + far >= 1))
      return "density - epsilon and density + epsilon must lie between 0 and 1";
  return {};
}

inline constexpr method della{.name = "della",
                              .base = base_use::required,
                              .parameters = della_ties_parameters,
                              .formula = "della_linear, of the elected sign, normalised",
                              .start = [](const task& what) { return start_della(what, true); },
                              .refuses = refuse_della};

inline constexpr method della_linear{
    .name = "della_linear",
    .base = base_use::required,
    .parameters = della_linear_parameters,
    .formula = "base + lambda * sum of w_m deltas kept with a probability by rank in the row (Deep et al. 2024)",
    .start = [](const task& what) { return start_della(what, false); },
    .refuses = refuse_della};

}  // namespace flywheel::inline v0::adapt::merge
