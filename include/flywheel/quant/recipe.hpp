// How one tensor is quantized.
#pragma once

#include <cstdint>
#include <span>

#include "flywheel/core/config.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/formats/encoding/rounding.hpp"

namespace flywheel::inline v0::quant {

using formats::rounding;

struct recipe {
  dtype type = dtype::q4_k;
  rounding method = rounding::search;
  /// Per column, how much its error counts: the mean square of its activations (an importance matrix). [cols], or one
  /// such row for each matrix of a tensor of several (experts): [matrices, cols]. Empty: all alike. What is minimised
  /// is sum importance * error^2, nothing more: making large values count for more on top of that, as other quantizers
  /// do (importance * sqrt(mean x^2 + x^2)), changed models' KL divergence by no more than chance, either way. Columns
  /// that were never active count 1e-5 of the mean.
  std::span<const float> importance = {};
};

}  // namespace flywheel::inline v0::quant
