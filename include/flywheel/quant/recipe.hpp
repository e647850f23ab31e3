// How one tensor is quantized.
#pragma once

#include <cstdint>
#include <span>

#include "flywheel/core/config.hpp"
#include "flywheel/core/dtype.hpp"

namespace flywheel::inline v0::quant {

/// How scales and codes of a group are found, from fast to good. Errors are weighted by importance where it is given.
enum class rounding : std::uint8_t {
  nearest,  ///< The scale that the largest value asks for, each value to its nearest level ("rtn").
  search,   ///< Many scales tried, the best refined by weighted least squares.
  greedy,   ///< The same, then codes stepped one by one as long as the weighted error falls.
};

struct recipe {
  dtype type = dtype::q4_k;
  rounding method = rounding::search;
  /// Per column, how much its error counts: the mean square of its activations (an importance matrix). [cols], or one
  /// such row for each matrix of a tensor of several (experts): [matrices, cols]. Empty: all alike.
  std::span<const float> importance = {};
};

}  // namespace flywheel::inline v0::quant
