// One sequence: its tokens, its KV cache, and what can be done with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/model/sampler.hpp"
#include "flywheel/text/tokenizer.hpp"

namespace flywheel::inline v0 {

/// What happens when the context is full.
enum class when_full : std::uint8_t {
  refuse,  ///< errc::context_full
  slide,   ///< Keep the first `keep` tokens, forget the older half of the rest, and recompute what is kept.
};

struct session_options {
  std::int32_t n_ctx = 0;        ///< Tokens the session can hold; 0: what the model was trained for, at most 4096.
  std::int32_t n_batch = 512;    ///< Tokens per prefill chunk: sets the arena's size.
  dtype kv_type = dtype::f16;    ///< f16 or f32.
  flywheel::when_full when_full = when_full::refuse;
  std::int32_t keep = 0;         ///< Tokens at the front that sliding keeps (a system prompt).
};

enum class stop_reason : std::uint8_t { length, end_of_text, stop_text, callback, cancelled, context_full };

/// One step of a generation, given to the callback. Views are valid during the call.
struct generation_step {
  token_id id = -1;
  std::string_view text;  ///< Text completed by this token: whole UTF-8 sequences; may be empty.
  float logprob = 0;      ///< When asked for.
  std::span<const token_probability> top;  ///< When asked for: the most probable alternatives.
};

/// Return false to stop.
using generation_callback = std::function<bool(const generation_step& step)>;

struct generate_options {
  std::int32_t max_tokens = 256;
  sampler_options sampler;
  bool ignore_eos = false;            ///< Go on after an end token.
  std::vector<std::string> stop_texts;  ///< End before any of these appears in the text.
  bool logprobs = false;              ///< Fill generation_step::logprob.
  std::int32_t top_logprobs = 0;      ///< Fill generation_step::top with as many.
  flywheel::control control;          ///< Cancelled within one layer of one chunk.
};

struct generation {
  std::vector<token_id> ids;   ///< Generated tokens, without the end token.
  std::string text;
  std::vector<float> logprobs; ///< One per id, when asked for.
  stop_reason reason = stop_reason::length;
};

/// One sequence. Movable. One thread at a time; different sessions of one model may run at the same time.
class FLYWHEEL_API session {
 public:
  session(session&&) noexcept;
  session& operator=(session&&) noexcept;
  ~session();

  /// Appends tokens and computes them in chunks; logits() then holds the last one's. On cancellation or error the
  /// session is as before the call. Errors: invalid_argument (an id out of range, nothing given), context_full,
  /// cancelled, out_of_memory.
  [[nodiscard]] result<void> prefill(std::span<const token_id> ids, const control& control = {});
  /// The same for text: encoded with special tokens added when the session is empty.
  [[nodiscard]] result<void> prefill(std::string_view text, const control& control = {});
  /// Logits [n_vocab] after the last token; empty when nothing was computed yet. Valid until the next call.
  [[nodiscard]] std::span<const float> logits() const noexcept;
  /// Receives rows of logits [n_vocab]; `position` counts from the first id of the call.
  using row_callback = std::function<result<void>(std::size_t position, std::span<const float> logits)>;
  /// Like prefill, and gives the logits of every position p with p % every == 0, and of the last one (every = 0: of
  /// the last alone), in order.
  [[nodiscard]] result<void> prefill_rows(std::span<const token_id> ids, std::size_t every, const row_callback& row,
                                          const control& control = {});
  /// Log-probabilities of ids[1..] given all before (and what the session already holds), one per id from 1 on.
  [[nodiscard]] result<std::vector<float>> score(std::span<const token_id> ids, const control& control = {});
  /// Samples tokens one after the other. The session must hold at least one token. Cancellation is not an error here:
  /// it ends the generation with stop_reason::cancelled, and the session stays usable.
  [[nodiscard]] result<generation> generate(const generate_options& options, const generation_callback& each = {});
  /// The mean over positions (or the last position's) hidden state after the final norm of `ids`, [n_embd]; L2
  /// normalised on request. The session must be empty and is left empty.
  enum class pooling : std::uint8_t { mean, last };
  [[nodiscard]] result<std::vector<float>> embed(std::span<const token_id> ids, pooling how = pooling::mean,
                                                 bool normalize = true, const control& control = {});

  [[nodiscard]] std::span<const token_id> tokens() const noexcept;
  [[nodiscard]] std::int32_t n_ctx() const noexcept;
  /// Bytes now held: KV cache and arena.
  [[nodiscard]] std::size_t kv_bytes() const noexcept;
  [[nodiscard]] std::size_t arena_bytes() const noexcept;

  /// Forgets all tokens after the first `count`. logits() become empty unless nothing changes.
  [[nodiscard]] result<void> truncate(std::size_t count);
  void clear() noexcept;

  /// An independent copy of the sequence; KV pages are shared until one side writes to them.
  [[nodiscard]] result<session> fork() const;
  /// Writes tokens and KV state to a file (temporary name, rename), with a version and the model's digest.
  [[nodiscard]] result<void> save(const std::filesystem::path& path) const;
  /// Replaces the state. Errors: malformed, unsupported (another version), invalid_argument (another model or KV type,
  /// or too long for this context). On error the session is as before.
  [[nodiscard]] result<void> restore(const std::filesystem::path& path);
  [[nodiscard]] result<std::vector<std::byte>> save() const;
  [[nodiscard]] result<void> restore(std::span<const std::byte> bytes);

  struct state;
  explicit session(std::unique_ptr<state> s) noexcept;

 private:
  std::unique_ptr<state> state_;
};

}  // namespace flywheel::inline v0
