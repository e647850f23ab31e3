// How much an encoder looks for.
#pragma once

#include <cstdint>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::formats {

/// How scales and codes of a group are found, from fast to good. Errors are weighted by importance where it is given.
enum class rounding : std::uint8_t {
  nearest,  ///< The scale that the largest value asks for, each value to its nearest level ("rtn").
  search,   ///< Many scales tried, the best refined by weighted least squares.
  greedy,   ///< A finer search, then every stored scale stepped one by one as long as the weighted error falls.
};

}  // namespace flywheel::inline v0::formats
