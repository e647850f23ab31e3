// Task arithmetic (Ilharco et al. 2023): out = base + lambda * sum of w_m (x_m - base), the sum divided by that of the
// weights when normalize is on. density and rescale are taken and have no effect, as in mergekit: nothing is dropped.
#pragma once

#include "flywheel/adapt/merge/task_vectors.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr parameter_info task_arithmetic_parameters[] = {
    weight_parameter,
    {"density", true, 1, false, 0, 1, "Accepted, has no effect", {}, true},
    normalize_parameter(false),
    lambda_parameter,
    {"rescale", false, 0, false, 0, 1, "Accepted, has no effect", {}, true},
    int8_mask_parameter};

/// Keeps everything.
struct unthinned : passless {
  struct walk {
    static void next(const delta_rows& rows, bool, float* out) {
      for (std::int64_t i = 0; i < rows.count; ++i) out[i] = rows(i);
    }
  };
  [[nodiscard]] walk start(std::size_t, const double*) const noexcept { return {}; }
};

inline constexpr method task_arithmetic{
    .name = "task_arithmetic",
    .base = base_use::required,
    .parameters = task_arithmetic_parameters,
    .formula = "base + lambda * sum of w_m (x_m - base) (Ilharco et al. 2023)",
    .start = [](const task& what) { return start_task_vectors(task_arithmetic_parameters, what, unthinned{}, false); }};

}  // namespace flywheel::inline v0::adapt::merge
