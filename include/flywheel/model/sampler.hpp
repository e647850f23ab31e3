// Choosing the next token from logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/text/tokenizer.hpp"

namespace flywheel::inline v0 {

/// How to choose a token. The defaults are plain sampling at temperature 0.8. Steps run in this order: logit bias,
/// penalties, top-k, typical, top-p, min-p, temperature, draw. A step sees the distribution (at temperature 1) that the
/// steps before it left, renormalised; of equally likely tokens it prefers the lower id. At least one token is kept.
struct sampler_options {
  float temperature = 0.8F;  ///< 0: greedy: the largest logit after bias and penalties; no other step runs.
  std::int32_t top_k = 40;   ///< 0: off. Keeps the k most probable tokens.
  float top_p = 0.95F;       ///< 1: off. Keeps the fewest most probable tokens of this mass (Holtzman et al. 2020).
  float min_p = 0.05F;       ///< 0: off. Keeps tokens with p >= min_p * p_max (Nguyen et al. 2024).
  float typical_p = 1.0F;    ///< 1: off. Keeps the fewest tokens of this mass whose -log p is nearest to the
                             ///< entropy (Meister et al. 2022, locally typical sampling).
  float repetition_penalty =
      1.0F;                        ///< 1: off. Keskar et al. 2019 (CTRL): divides positive, multiplies negative logits.
  float frequency_penalty = 0.0F;  ///< 0: off. Subtracted once per occurrence.
  float presence_penalty = 0.0F;   ///< 0: off. Subtracted once.
  std::int32_t penalty_window = 64;  ///< How many last tokens the penalties look at; -1: all; 0: none.
  std::vector<std::pair<token_id, float>> logit_bias;  ///< Added to logits; -infinity forbids a token.
  std::uint64_t seed = 0;  ///< The same seed, logits and history give the same tokens on every machine.

  [[nodiscard]] static sampler_options greedy() {
    sampler_options options;
    options.temperature = 0;
    return options;
  }
};

/// A token with its log-probability (natural logarithm, of the unmodified distribution).
struct token_probability {
  token_id id = -1;
  float logprob = 0;
};

/// Keeps the history and the random state; one per sequence; not thread-safe; copyable (a copy continues alike).
/// Its scratch memory grows at the first choice and is kept.
class FLYWHEEL_API sampler {
 public:
  /// Error: invalid_argument for values out of their range (NaN, negative temperature, ...).
  [[nodiscard]] static result<sampler> create(sampler_options options);

  /// Chooses from logits [n_vocab]; does not record the choice. Errors, which leave the sampler as it was:
  /// invalid_argument when `logits` is empty, contains NaN or +infinity, when every token is forbidden, or when a
  /// biased id is outside of the vocabulary; out_of_memory.
  [[nodiscard]] result<token_id> choose(std::span<const float> logits);
  /// Records a token in the history that the penalties look at. Errors, which leave the sampler as it was:
  /// invalid_argument for a negative id; out_of_memory.
  result<void> accept(token_id id);
  /// Back to an empty history and the first random number.
  void reset() noexcept;
  [[nodiscard]] const sampler_options& options() const noexcept { return options_; }

 private:
  struct candidate {
    double weight;  ///< Proportional to its probability.
    float logit;
    token_id id;
  };
  struct ranked {
    double weight;
    double key;  ///< Lower is kept first.
    token_id id;
  };
  explicit sampler(sampler_options options) noexcept : options_(std::move(options)) {}
  [[nodiscard]] bool penalizes() const noexcept;
  [[nodiscard]] result<std::span<const float>> modified(std::span<const float> logits);
  [[nodiscard]] result<token_id> pick(std::span<const float> logits);
  void collect(std::span<const float> logits);
  void weigh(double temperature);
  void keep_typical();
  void keep_probable();
  [[nodiscard]] double uniform() noexcept;

  sampler_options options_;
  std::vector<token_id> window_;                           ///< The last tokens, a ring of at most penalty_window.
  std::size_t oldest_ = 0;                                 ///< Where the ring begins once it is full.
  std::vector<std::pair<token_id, std::int32_t>> counts_;  ///< Occurrences in the window, by ascending id.
  std::uint64_t counter_ = 0;                              ///< Number of choices made.
  std::vector<float> modified_;                            ///< Scratch: logits after bias and penalties.
  std::vector<candidate> kept_;                            ///< Scratch: what the steps have kept.
  std::vector<ranked> ranks_;                              ///< Scratch: for selecting by another order.
};

/// log softmax(logits)[id], summed in double. `id` must be in range. -infinity for a token with logit -infinity.
[[nodiscard]] FLYWHEEL_API double log_probability(std::span<const float> logits, token_id id) noexcept;
/// Fills `out` with the most probable tokens, most probable first (ties: lower id first); returns how many were
/// written: out.size(), or as many as there are logits. Allocates nothing.
FLYWHEEL_API std::size_t top_probabilities(std::span<const float> logits, std::span<token_probability> out) noexcept;
/// The same as a vector of at most `count`. Error: out_of_memory.
[[nodiscard]] FLYWHEEL_API result<std::vector<token_probability>> top_probabilities(std::span<const float> logits,
                                                                                    std::size_t count);

}  // namespace flywheel::inline v0
