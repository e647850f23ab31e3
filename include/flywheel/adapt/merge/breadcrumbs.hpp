// Model Breadcrumbs (Davari & Belilovsky 2024): of every task vector neither the int(gamma n) largest elements nor the
// smallest, so that int(density n) stay; where gamma + density > 1, fewer of the largest go. Of equal magnitudes the
// lower index is the larger. breadcrumbs_ties also elects signs (ties.hpp). The paper keeps layers' percentiles beta
// and gamma; names and counts here are mergekit's, but that where int(gamma n) is 0 none of the largest go (there,
// everything does).
#pragma once

#include "flywheel/adapt/merge/magnitude_band.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr parameter_info breadcrumbs_parameters[] = {
    weight_parameter,
    density_parameter,
    {"gamma", true, 0.01, false, 0, 1, "Share of the largest that is dropped"},
    normalize_parameter(false),
    lambda_parameter,
    rescale_parameter(false),
    rescale_norm_parameter,
    int8_mask_parameter};

[[nodiscard]] inline std::unique_ptr<merger> start_breadcrumbs(const task& what, bool elect) {
  const auto density = values_of(breadcrumbs_parameters, what, "density");
  const auto gamma = values_of(breadcrumbs_parameters, what, "gamma");
  const auto n = static_cast<std::uint64_t>(what.elements);
  std::vector<magnitude_band::range> keep;
  for (std::size_t m = 0; m < what.models; ++m) {
    const auto kept = static_cast<std::uint64_t>(density[m] * static_cast<double>(n));
    const auto top = std::min(static_cast<std::uint64_t>(gamma[m] * static_cast<double>(n)), n - kept);
    keep.push_back({top, top + kept, density[m] >= 1});
  }
  return start_task_vectors(breadcrumbs_parameters, what,
                            magnitude_band(std::move(keep), floats_of(breadcrumbs_parameters, what, "density")), elect);
}

inline constexpr method breadcrumbs{
    .name = "breadcrumbs",
    .base = base_use::required,
    .parameters = breadcrumbs_parameters,
    .formula = "base + lambda * sum of w_m deltas without the largest and the smallest (Davari & Belilovsky 2024)",
    .start = [](const task& what) { return start_breadcrumbs(what, false); }};

inline constexpr method breadcrumbs_ties{.name = "breadcrumbs_ties",
                                         .base = base_use::required,
                                         .parameters = breadcrumbs_parameters,
                                         .formula = "breadcrumbs, of the elected sign",
                                         .start = [](const task& what) { return start_breadcrumbs(what, true); }};

}  // namespace flywheel::inline v0::adapt::merge
