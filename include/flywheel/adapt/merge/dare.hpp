// DARE (Yu et al. 2024): every element of a task vector is kept with probability density, at random by the seed, the
// model's place and the element's index. The paper divides what is kept by density (rescale_norm density); mergekit's
// rescaling, the default here too, gives it the L1 norm it had. dare_ties also elects signs (ties.hpp).
#pragma once

#include "flywheel/adapt/merge/task_vectors.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr parameter_info dare_parameters[] = {
    weight_parameter,        density_parameter,      normalize_parameter(false), lambda_parameter,
    rescale_parameter(true), rescale_norm_parameter, int8_mask_parameter};

class random_choice : public passless {
 public:
  random_choice(std::vector<double> density, std::uint64_t seed) : density_(std::move(density)), seed_(seed) {}
  struct walk {
    double density;
    std::uint64_t seed, model;
    void next(const delta_rows& rows, bool expectation, float* out) const {
      const float factor = expectation && density > 0 ? static_cast<float>(1 / density) : 1;
      for (std::int64_t i = 0; i < rows.count; ++i) {
        const bool kept = uniform(seed, model, static_cast<std::uint64_t>(rows.first + i)) < density;
        out[i] = kept ? factor * rows(i) : 0.0F;
      }
    }
  };
  [[nodiscard]] walk start(std::size_t m, const double*) const noexcept { return {density_[m], seed_, m}; }

 private:
  std::vector<double> density_;
  std::uint64_t seed_;
};

[[nodiscard]] inline std::unique_ptr<merger> start_dare(const task& what, bool elect) {
  const auto density = values_of(dare_parameters, what, "density");
  return start_task_vectors(dare_parameters, what, random_choice({density.begin(), density.end()}, what.seed), elect);
}

inline constexpr method dare_linear{.name = "dare_linear",
                                    .base = base_use::required,
                                    .parameters = dare_parameters,
                                    .formula = "base + lambda * sum of w_m random parts of deltas (Yu et al. 2024)",
                                    .start = [](const task& what) { return start_dare(what, false); }};

inline constexpr method dare_ties{.name = "dare_ties",
                                  .base = base_use::required,
                                  .parameters = dare_parameters,
                                  .formula = "dare_linear, of the elected sign",
                                  .start = [](const task& what) { return start_dare(what, true); }};

}  // namespace flywheel::inline v0::adapt::merge
