// The normaliser of a distribution over the vocabulary, for those who need several log-probabilities of one row.
#pragma once

#include <span>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::detail {

/// log sum exp(logits), summed in double in a fixed order; -infinity when no logit is above it, NaN when one is NaN.
[[nodiscard]] double log_sum(std::span<const float> logits) noexcept;

}  // namespace flywheel::inline v0::detail
