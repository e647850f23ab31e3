// How much an encoder looks for.
#pragma once

#include <cstdint>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::formats {

/// How scales and codes of a group are found, from fast to good. Errors are weighted by importance where it is given.
enum class rounding : std::uint8_t {
  nearest,  ///< The scale that the largest value asks for, each value to its nearest level ("rtn").
  search,   ///< Many scales tried, the best refined by weighted least squares.
  /// Search, then a much finer search from there, with more neighbours of every stored integer. Codes are always the
  /// nearest for the scales that are stored: to step a single code can only help where the scales follow.
  greedy,
};

}  // namespace flywheel::inline v0::formats
