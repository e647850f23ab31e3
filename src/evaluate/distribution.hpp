// Probabilities over a vocabulary: kept in 16 bits each, and compared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "flywheel/text/tokenizer.hpp"

namespace flywheel::inline v0::evaluate {

/// A distribution whose logits, less the largest one, are -range * (code / 65535)^2. The square makes steps small where
/// probabilities are large: at most 2 sqrt(range * l) / 65535 nats at a log-probability -l from the top one. It is
/// normalised again when it is used, so that the divergence of a distribution from its own stored form is half the mean
/// square of those steps' errors, about 1e-9 nats, and never negative.
struct stored_row {
  float range = 0;
  token_id top = 0;         ///< The most probable token; the first of equals.
  double log_p = 0, p = 0;  ///< Of the token that the text has next, exact.
};

/// Writes codes [vocabulary]. Logits more than 80 below the largest are as improbable as that. Nothing when a logit is
/// NaN or +infinity, or all are -infinity.
[[nodiscard]] std::optional<stored_row> store(std::span<const float> logits, token_id next,
                                              std::span<std::uint16_t> codes) noexcept;

struct row_comparison {
  double kl = 0;  ///< KL(stored || other), nats.
  token_id top = 0;
  double log_p = 0, p = 0;  ///< Of the next token, by the other.
};

/// The stored distribution against another model's logits. Nothing under the conditions of store().
[[nodiscard]] std::optional<row_comparison> compare(const stored_row& row, std::span<const std::uint16_t> codes,
                                                    std::span<const float> logits, token_id next) noexcept;

}  // namespace flywheel::inline v0::evaluate
