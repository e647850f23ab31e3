// How well a model predicts a text: mean negative log-likelihood and perplexity over windows (cut_windows).
#pragma once

#include <cstdint>
#include <span>

#include "flywheel/core/config.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/evaluate/compare.hpp"
#include "flywheel/model/session.hpp"

namespace flywheel::inline v0::evaluate {

/// Sums over scored positions, in nats. Scores of parts of a text add up to its score.
struct score {
  double sum = 0, squares = 0;  ///< Of negative log-likelihoods, and of their squares.
  std::int64_t positions = 0;   ///< Scored tokens.
  std::int64_t tokens = 0;      ///< Tokens that were run.
  score& operator+=(const score& other) noexcept;
  /// With the standard error of the mean over positions, 0 where there is one only. NaN without positions.
  [[nodiscard]] FLYWHEEL_API estimate mean_nll() const noexcept;
  /// exp of the mean, its error carried through.
  [[nodiscard]] FLYWHEEL_API estimate perplexity() const noexcept;
};

inline score& score::operator+=(const score& other) noexcept {
  sum += other.sum;
  squares += other.squares;
  positions += other.positions;
  tokens += other.tokens;
  return *this;
}

/// Empties the session and runs the windows in it, each by itself; adapters and options are the session's. The session
/// is left with the last window. Errors: invalid_argument (a window without a scored token), those of session::score.
[[nodiscard]] FLYWHEEL_API result<score> score_windows(session& sequence, std::span<const window> windows,
                                                       const control& control = {});

}  // namespace flywheel::inline v0::evaluate
