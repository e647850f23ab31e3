// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/text/tokenizer.hpp"

namespace flywheel::inline v0 {

/// How to choose a token. The defaults are plain sampling at temperature 0.8. Steps run in this order: logit bias,
/// penalties, top-k, typical, top-p, min-p, temperature, draw. Disabled values are given with each field.
struct sampler_options {
  float temperature = 0.8F;         ///< 0: greedy (argmax; the lowest id wins a tie).
  std::int32_t top_k = 40;          ///< 0: off.
  float top_p = 0.95F;              ///< 1: off. Holtzman et al. 2020, nucleus sampling.
  float min_p = 0.05F;              ///< 0: off. Keeps tokens with p >= min_p * p_max.
  float typical_p = 1.0F;           ///< 1: off. Meister et al. 2022, locally typical sampling.
  float repetition_penalty = 1.0F;  ///< 1: off. Keskar et al. 2019 (CTRL): divides positive, multiplies negative logits.
  float frequency_penalty = 0.0F;   ///< 0: off. Subtracted once per occurrence.
  float presence_penalty = 0.0F;    ///< 0: off. Subtracted once.
  std::int32_t penalty_window = 64; ///< How many last tokens the penalties look at; -1: all.
  std::vector<std::pair<token_id, float>> logit_bias;  ///< Added to logits; -infinity forbids a token.
  std::uint64_t seed = 0;           ///< The same seed, logits and history give the same tokens on every machine.

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
class FLYWHEEL_API sampler {
 public:
  /// Error: invalid_argument for values out of their range (NaN, negative temperature, ...).
  [[nodiscard]] static result<sampler> create(sampler_options options);

  /// Chooses from logits [n_vocab]; does not record the choice. Error: invalid_argument when `logits` is empty,
  /// when they contain NaN, or when every token is forbidden.
  [[nodiscard]] result<token_id> choose(std::span<const float> logits);
  /// Records a token in the history that the penalties look at.
  void accept(token_id id);
  void reset();
  [[nodiscard]] const sampler_options& options() const noexcept { return options_; }

 private:
  sampler_options options_;
  std::vector<token_id> history_;
  std::uint64_t counter_ = 0;
  std::vector<token_probability> scratch_;
};

/// log softmax(logits)[id], summed in double. `id` must be in range.
[[nodiscard]] FLYWHEEL_API double log_probability(std::span<const float> logits, token_id id) noexcept;
/// The `count` most probable tokens, most probable first.
[[nodiscard]] FLYWHEEL_API std::vector<token_probability> top_probabilities(std::span<const float> logits,
                                                                            std::size_t count);

}  // namespace flywheel::inline v0
