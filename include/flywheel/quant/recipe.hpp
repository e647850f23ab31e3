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
  /// such row for each matrix of a tensor of several (experts): [matrices, cols]. Empty: all alike.
  std::span<const float> importance = {};
};

}  // namespace flywheel::inline v0::quant
