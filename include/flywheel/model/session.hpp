// One sequence: its tokens, its KV cache, and what can be done with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/model/adapter.hpp"
#include "flywheel/model/generation.hpp"
#include "flywheel/text/tokenizer.hpp"

namespace flywheel::inline v0 {

class batch;
class model;

/// What happens when the context is full.
enum class when_full : std::uint8_t {
  refuse,  ///< errc::context_full
  /// Keep the first `keep` tokens, forget the older half of the rest, and recompute the younger half. Exact: the result
  /// is that of a session that only ever held the tokens kept. Each time costs the computation of half a context, so a
  /// generated token costs, on average, one more token of prefill. Most models need at least their first token kept.
  slide,
};

struct session_options {
  std::int32_t n_ctx = 0;      ///< Tokens the session can hold; 0: what the model was trained for, at most 4096.
  std::int32_t n_batch = 512;  ///< Tokens per prefill chunk: sets the arena's size.
  /// Of the KV cache: f16, f32, q8_0 (half of f16's memory, nearly the same results) or q4_0 (a third: heads are
  /// rotated, values have 4 bits and keys 5). The last two need a head size that is a multiple of 32.
  dtype kv_type = dtype::f16;
  flywheel::when_full when_full = when_full::refuse;
  std::int32_t keep = 0;              ///< Tokens at the front that sliding keeps (a system prompt).
  std::vector<adapter_use> adapters = {};  ///< What the session begins with; see session::set_adapters.
};

/// One sequence. Movable; a moved-from session can only be destroyed or assigned to. One thread at a time; different
/// sessions of one model may run at the same time. It keeps its model loaded.
///
/// The tokens are the state; logits and KV pages are computed from them when needed and always agree with them. A call
/// that fails or is cancelled leaves tokens() and logits() as they were. Results do not depend on how tokens were
/// divided into calls and chunks, nor on the number of threads.
class FLYWHEEL_API session {
 public:
  session(session&&) noexcept;
  session& operator=(session&&) noexcept;
  ~session();

  /// Appends tokens and computes them in chunks; logits() then holds the last one's. Tokens that do not fit are
  /// refused, or the context slides as if they had come one by one. Errors: invalid_argument (an id out of range,
  /// nothing given), context_full, cancelled, out_of_memory.
  [[nodiscard]] result<void> prefill(std::span<const token_id> ids, const control& control = {});
  /// The same for text: encoded with special tokens added when the session is empty; special tokens in the text are
  /// plain text (encode it yourself to have them parsed). Error: unsupported when the model has no vocabulary.
  [[nodiscard]] result<void> prefill(std::string_view text, const control& control = {});
  /// Appends and computes one token.
  [[nodiscard]] result<void> decode(token_id id, const control& control = {});
  /// Computes what is held but not yet computed, so that logits() is there: needed only to look at logits() after
  /// generate() or truncate(). Error: invalid_argument when the session is empty.
  [[nodiscard]] result<void> compute(const control& control = {});
  /// Logits [n_vocab] after the last token. Empty when it was not computed yet: in an empty session, after truncate(),
  /// and after generate(), which leaves its last token to the next call. Valid until the next call.
  [[nodiscard]] std::span<const float> logits() const noexcept;

  /// Receives rows of logits [n_vocab]; `position` counts from the first id of the call. An error ends the call.
  using row_callback = std::function<result<void>(std::size_t position, std::span<const float> logits)>;
  /// Like prefill without sliding, and gives the logits of every position p with p % every == 0, and of the last one
  /// (every = 0: of the last alone), in order. Needs up to 32 MiB more while it runs.
  [[nodiscard]] result<void> prefill_rows(std::span<const token_id> ids, std::size_t every, const row_callback& row,
                                          const control& control = {});
  /// Like prefill without sliding, and gives the log-probability of each id given everything before it. In an empty
  /// session nothing is before the first id, so there is one number per id from ids[1] on; otherwise one per id.
  [[nodiscard]] result<std::vector<float>> score(std::span<const token_id> ids, const control& control = {});

  /// Samples tokens one after the other. Cancellation is not an error here: it ends the generation with
  /// stop_reason::cancelled, and the session holds what was generated. Errors: invalid_argument (an option, an empty
  /// session, unusable logits), out_of_memory, those of the hook and of what the callback throws (internal).
  [[nodiscard]] result<generation> generate(const generate_options& options, const generation_callback& each = {});
  /// The same as a range. Errors are in its status().
  [[nodiscard]] generation_stream stream(const generate_options& options) noexcept;

  /// Tokens computed from now on go through these adapters of the model, in place of those before; none: the plain
  /// model. Nothing is loaded or copied. What is computed stays as it is, with its logits and keys and values: to have
  /// earlier tokens computed again, truncate or clear. Errors: invalid_argument (an empty handle, an adapter of another
  /// model, a scale that is not finite), out_of_memory; then nothing has changed.
  [[nodiscard]] result<void> set_adapters(std::span<const adapter_use> adapters);
  /// Valid until the next call that is not const.
  [[nodiscard]] std::span<const adapter_use> adapters() const noexcept;

  [[nodiscard]] std::span<const token_id> tokens() const noexcept;
  /// As created, with defaults filled in.
  [[nodiscard]] const session_options& options() const noexcept;
  [[nodiscard]] std::int32_t n_ctx() const noexcept;
  [[nodiscard]] flywheel::model model() const noexcept;
  /// Bytes now held: KV cache and arena. Pages shared with forks count in each of them.
  [[nodiscard]] std::size_t kv_bytes() const noexcept;
  [[nodiscard]] std::size_t arena_bytes() const noexcept;

  /// Forgets all tokens after the first `count`. logits() become empty unless nothing changes. Error: invalid_argument
  /// when there are fewer.
  [[nodiscard]] result<void> truncate(std::size_t count);
  void clear() noexcept;

  /// An independent copy of the sequence, with its adapters; KV pages are shared until one side writes to them. The
  /// copy may be used on another thread at once. Error: out_of_memory.
  [[nodiscard]] result<session> fork() const;
  /// Writes tokens, logits and KV state to a file (temporary name, rename), with a version and the digests of the model
  /// and of the adapters in use; not the adapters themselves.
  /// Errors: those of files, out_of_memory.
  [[nodiscard]] result<void> save(const std::filesystem::path& path) const;
  [[nodiscard]] result<std::vector<std::byte>> save() const;
  /// Replaces the state. Errors: malformed, unsupported (another version), invalid_argument (another model, other
  /// adapters or KV type, or too long for this context), not_found, io, out_of_memory.
  [[nodiscard]] result<void> restore(const std::filesystem::path& path);
  [[nodiscard]] result<void> restore(std::span<const std::byte> bytes);

  struct state;
  explicit session(std::unique_ptr<state> s) noexcept;

 private:
  friend class batch;
  std::unique_ptr<state> state_;
};

}  // namespace flywheel::inline v0
