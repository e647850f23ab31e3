// Quantizing a whole model: which tensor gets which type, how, and what came of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/quant/gptq.hpp"
#include "flywheel/quant/importance.hpp"
#include "flywheel/quant/recipe.hpp"

namespace flywheel::inline v0::quant {

/// How weights are rounded.
enum class method : std::uint8_t {
  nearest,
  search,
  greedy,
  gptq,  ///< Error feedback; needs calibration text.
  awq,   ///< Activation-aware scales and clipping folded into neighbours, then search; needs calibration text.
};

}  // namespace flywheel::inline v0::quant
