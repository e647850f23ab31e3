// Which type each tensor gets, when all together may have so many bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "flywheel/core/dtype.hpp"

namespace flywheel::inline v0::quant {

/// One way to store a tensor.
struct choice {
  dtype type = dtype::f16;
  std::uint64_t bytes = 0;
  double error = 0;  ///< What it costs; errors of tensors add up.
};

/// Bytes of the smallest choice of every tensor: the least that allocate() takes.
[[nodiscard]] std::uint64_t least_bytes(std::span<const std::vector<choice>> tensors) noexcept;

/// An index into each tensor's choices, so that all bytes are at most `budget` and the errors small: the Lagrangian's
/// optimum on the lower convex hulls of (bytes, error), then single and paired changes that use what it leaves over
/// (Shoham and Gersho 1988 have the first part). Nothing when the budget is below least_bytes(). Every list has a
/// choice.
[[nodiscard]] std::optional<std::vector<std::size_t>> allocate(std::span<const std::vector<choice>> tensors,
                                                               std::uint64_t budget);

}  // namespace flywheel::inline v0::quant
