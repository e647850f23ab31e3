// Types by a budget: how much each tensor's rounding costs the model, measured, and the choice that costs least.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/evaluate/compare.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/quant/importance.hpp"
#include "flywheel/quant/recipe.hpp"

namespace flywheel::inline v0::quant {

struct type_search_options {
  std::optional<std::uint64_t> bytes;  ///< Of all tensors, at most.
  std::optional<double> kl;            ///< Mean KL divergence, at most; the fewest bytes then. One of the two.
  rounding method = rounding::search;
  const importance_matrix* importance = nullptr;
  context ctx;
  flywheel::control control;
};

struct type_search_result {
  std::vector<dtype> types;       ///< [tensors]
  std::vector<double> share;      ///< [tensors]: of the predicted KL divergence; the sum is 1.
  double predicted_kl = 0;        ///< Sum of the tensors' own.
  evaluate::comparison measured;  ///< On windows that nothing was fitted to.
};

/// `types` [tensors]: the source's own where the tensor stays, the caller's where that is fixed, nothing where it is to
/// be chosen. `windows`: at least 4, of calibration texts; half of them measure the result. A model of up to 200 M
/// weights is measured tensor by tensor, larger ones by kind of tensor. A KL divergence below about 1e-9, which the
/// baseline's stored form has from the model itself, is met by the original alone. Memory: beside the model the tensors
/// that are changed, quantized for a choice of types, and as f32 while a unit (a tensor, or all of a kind) is measured.
/// Errors: invalid_argument (a target out of reach, saying what can be reached; too few windows), those of
/// running the model, cancelled.
[[nodiscard]] result<type_search_result> search_types(const io::archive& from,
                                                      std::span<const std::optional<dtype>> types,
                                                      std::vector<evaluate::window> windows,
                                                      const type_search_options& options);

}  // namespace flywheel::inline v0::quant
