// Generating text: what to ask for, what comes back, and a range that gives it token by token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/model/sampler.hpp"
#include "flywheel/text/tokenizer.hpp"

namespace flywheel::inline v0 {

namespace detail {
class generator;
}

enum class stop_reason : std::uint8_t {
  length,        ///< max_tokens were generated.
  end_of_text,   ///< The model chose an end token.
  stop_text,     ///< One of stop_texts appeared.
  callback,      ///< The callback returned false.
  cancelled,     ///< control.stop was triggered.
  context_full,  ///< No room for another token (when_full::refuse).
};

/// One step of a generation. Views are valid until the next step.
struct generation_step {
  token_id id = -1;  ///< -1: no token, the text that was held back at the end. Such a step comes last, if at all.
  std::string_view
      text;           ///< Text that has become certain: whole UTF-8 sequences, never part of a stop text; may be empty.
  float logprob = 0;  ///< When asked for.
  std::span<const token_probability> top;  ///< When asked for: the most probable tokens, whether chosen or not.
};

/// Return false to stop. What it throws becomes an error of generate().
using generation_callback = std::function<bool(const generation_step& step)>;

/// Changes the logits [n_vocab] that the sampler will see: a grammar sets what it forbids to -infinity. `tokens` are
/// all that the session holds. Log-probabilities are reported as they were before. An error ends the generation.
using logit_hook = std::function<result<void>(std::span<const token_id> tokens, std::span<float> logits)>;

struct generate_options {
  std::int32_t max_tokens = 256;        ///< -1: until something else ends it.
  sampler_options sampler;              ///< Penalties look at the session's earlier tokens, too.
  bool ignore_eos = false;              ///< Go on after an end token.
  std::vector<std::string> stop_texts;  ///< End before any of these appears in the text. UTF-8.
  bool render_special = false;          ///< Control tokens appear in the text.
  bool logprobs = false;                ///< Fill generation_step::logprob.
  std::int32_t top_logprobs = 0;        ///< Fill generation_step::top with as many.
  logit_hook adjust;                    ///< Called before each token is chosen.
  flywheel::control control;            ///< Cancelled within a tile of work, some milliseconds.
};

struct generation {
  /// Generated tokens without the end token. The session holds them all, those that spell a stop text included.
  std::vector<token_id> ids;
  std::string text;                    ///< Ends before the stop text.
  std::vector<float> logprobs;         ///< [ids.size()] when asked for.
  std::vector<token_probability> top;  ///< [ids.size(), top_logprobs] when asked for.
  stop_reason reason = stop_reason::length;
  token_id end_token = -1;  ///< Which one it was, when reason is end_of_text.
};

/// A generation that the caller pulls: each step computes one token.
///
///     auto stream = session.stream(options);
///     for (const auto& step : stream) std::cout << step.text;
///     if (!stream.status()) ...
///
/// An input range: one pass. Leaving the loop early is fine; the session holds the tokens that were given. The session
/// must outlive the stream and not be changed while it is in use (it may be moved). Movable, one thread at a time.
class FLYWHEEL_API generation_stream {
 public:
  class iterator {
   public:
    using iterator_concept = std::input_iterator_tag;
    using value_type = generation_step;
    using difference_type = std::ptrdiff_t;
    iterator() = default;
    [[nodiscard]] const generation_step& operator*() const noexcept { return stream_->step(); }
    [[nodiscard]] const generation_step* operator->() const noexcept { return &stream_->step(); }
    iterator& operator++() {
      if (!stream_->next()) stream_ = nullptr;
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const iterator& i, std::default_sentinel_t) noexcept { return i.stream_ == nullptr; }

   private:
    friend class generation_stream;
    explicit iterator(generation_stream* stream) noexcept : stream_(stream) {}
    generation_stream* stream_ = nullptr;
  };

  generation_stream(generation_stream&&) noexcept;
  generation_stream& operator=(generation_stream&&) noexcept;
  ~generation_stream();

  /// Computes the first step.
  [[nodiscard]] iterator begin() { return ++iterator(this); }
  [[nodiscard]] std::default_sentinel_t end() const noexcept { return {}; }

  /// Computes the next step; false when there is none: the generation has ended or failed.
  bool next() noexcept;
  /// The step that next() computed.
  [[nodiscard]] const generation_step& step() const noexcept;
  /// Success, or why the stream ended: the errors of session::generate. A failed step leaves the session with the
  /// tokens given before.
  [[nodiscard]] const result<void>& status() const noexcept { return status_; }
  /// What was generated so far; complete, with the reason of its end, once next() has returned false.
  [[nodiscard]] const generation& generated() const noexcept;

 private:
  friend class session;
  explicit generation_stream(result<std::unique_ptr<detail::generator>> made) noexcept;
  std::unique_ptr<detail::generator> generator_;  ///< Null when it could not be made.
  result<void> status_;
};

}  // namespace flywheel::inline v0
