// The loop behind generate() and stream(): choose a token, turn it into text, decide whether to go on.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "flywheel/model/generation.hpp"
#include "src/model/session_state.hpp"
#include "src/model/stop_matcher.hpp"

namespace flywheel::inline v0::detail {

class generator {
 public:
  /// Errors: invalid_argument for an option or an empty session.
  [[nodiscard]] static result<std::unique_ptr<generator>> create(session::state& s, const generate_options& options);

  /// Makes the next step; false when there is none. After an error there is none, either; the session then holds the
  /// tokens of the steps before.
  [[nodiscard]] result<bool> next();
  /// Whether next() will look at the session's logits and, when they are not there, compute them. False: it ends the
  /// generation, or gives text that was held back.
  [[nodiscard]] bool needs_logits() noexcept;
  [[nodiscard]] const generation_step& step() const noexcept { return step_; }
  /// The caller wants no more.
  void stop();
  [[nodiscard]] const generation& made() const noexcept { return made_; }
  [[nodiscard]] generation take() && noexcept { return std::move(made_); }

 private:
  enum class phase : std::uint8_t { running, ending, over };

  generator(session::state& s, const generate_options& options, flywheel::sampler sampler);
  [[nodiscard]] result<bool> advance();
  [[nodiscard]] result<bool> choose_next();
  void end(stop_reason reason) noexcept;
  [[nodiscard]] bool known(token_id id) const noexcept;

  session::state& session_;
  generate_options options_;
  control quiet_;  ///< Cancellation without progress: that of a step is not the generation's.
  flywheel::sampler sampler_;
  std::optional<text::decoder> decoder_;  ///< Without vocabulary there is no text.
  stop_matcher matcher_;
  paced_progress progress_;
  phase phase_ = phase::running;
  generation made_;
  generation_step step_;
  std::string text_;                    ///< Of the step.
  std::vector<token_probability> top_;  ///< Of the step.
  std::vector<float> adjusted_;         ///< Logits for the hook.
};

}  // namespace flywheel::inline v0::detail
