// How far a model is from another that it should equal: perplexities, KL divergence, agreement of the first choice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/model/model.hpp"

namespace flywheel::inline v0::evaluate {

/// What is run in one go, and which of its tokens count.
struct window {
  std::vector<token_id> ids;
  std::size_t first_scored = 1;  ///< ids[first_scored ..] are scored.
  std::size_t text_tokens = 0;   ///< How many of the ids are the text's.
};

enum class protocol : std::uint8_t {
  windows,      ///< The text in windows of ctx - 1 tokens behind BOS, every token scored.
  second_half,  ///< llama-perplexity's: chunks of ctx tokens, BOS in place of the first, the second half scored.
};

struct text_options {
  std::int32_t ctx = 256;
  evaluate::protocol protocol = evaluate::protocol::second_half;
  std::int64_t max_windows = 0;  ///< 0: the whole text.
  bool spread = false;           ///< max_windows evenly from the whole text; else its first ones.
};

/// Encodes and cuts. Errors: unsupported (no vocabulary), invalid_argument (too short).
[[nodiscard]] FLYWHEEL_API result<std::vector<window>> cut_windows(const text::tokenizer& vocabulary,
                                                                   std::string_view text,
                                                                   const text_options& options = {});

/// A figure and its standard error, which is NaN where there is one position only.
struct estimate {
  double value = 0;
  double error = 0;
};

/// Over the scored positions of all windows. p: the model's probabilities, q: the baseline's. Errors are standard
/// errors of the mean over positions, as llama-perplexity gives them: of the perplexity exp(mean) * error, of the root
/// mean square r of a difference d error(d^2) / (2 r).
struct comparison {
  std::int64_t positions = 0;
  estimate perplexity, baseline_perplexity;
  estimate log_ratio;  ///< ln(perplexity / baseline's); the error knows that both read the same text.
  estimate kl;         ///< Mean of KL(q || p), nats.
  double kl_median = 0, kl_p90 = 0, kl_p99 = 0, kl_max = 0;
  estimate same_top;     ///< Share of positions where both have the same most probable token.
  estimate delta_p_rms;  ///< Root mean square of p(token) - q(token), the text's own next token.
  double mean_delta_p = 0;
};

/// The baseline's log-probabilities at every scored position, to compare many models with: 2 * n_vocab bytes each, in
/// memory up to a limit and beyond it in a temporary file without a name. A model diverges from its own stored form by
/// less than 1e-8 nats (src/evaluate/distribution.hpp). Immutable; thread-safe.
class FLYWHEEL_API baseline {
 public:
  baseline() = default;
  /// Runs every window by itself. `session.n_ctx` 0: as long as the longest window. Errors: invalid_argument (no
  /// windows, or one without a scored token; logits that are not numbers), those of sessions, io (the temporary file),
  /// cancelled, out_of_memory.
  [[nodiscard]] static result<baseline> compute(const model& base, std::vector<window> windows,
                                                const session_options& session = {}, const control& control = {},
                                                std::size_t max_memory = std::size_t{1} << 30);
  /// Runs another model with the same vocabulary over the same windows. Memory beside the session's: 16 MiB of logits.
  /// Errors: those of compute; invalid_argument (another number of tokens in the vocabulary).
  [[nodiscard]] result<comparison> compare(const model& other, const session_options& session = {},
                                           const control& control = {}) const;
  [[nodiscard]] std::span<const window> windows() const noexcept;
  [[nodiscard]] explicit operator bool() const noexcept { return state_ != nullptr; }

  struct state;

 private:
  std::shared_ptr<const state> state_;
};

}  // namespace flywheel::inline v0::evaluate
