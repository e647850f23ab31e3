// Specification of the activation functions, in double.
#pragma once

#include <cmath>
#include <numbers>

#include "flywheel/core/ops.hpp"

namespace flywheel::inline v0::kernels::reference {

inline double activate(activation kind, double x) {
  switch (kind) {
    case activation::silu:
      return x / (1 + std::exp(-x));
    case activation::gelu_tanh:  // x/2 (1 + tanh u) = x / (1 + exp(-2u)), which does not cancel
      return x / (1 + std::exp(-2 * std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case activation::relu:
      return x > 0 ? x : 0;
    case activation::sigmoid:
      return 1 / (1 + std::exp(-x));
    case activation::clamped_swish: {
      const double m = x > 7 ? 7 : x;
      return m / (1 + std::exp(-1.702 * m));
    }
  }
  return 0;
}

inline double glu(activation kind, double gate, double up) {
  if (kind == activation::clamped_swish) up = std::fmax(-7, std::fmin(7, up)) + 1;
  return activate(kind, gate) * up;
}

}  // namespace flywheel::inline v0::kernels::reference
