// What a session holds, and the one place where tokens are computed.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/executor.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/model/session.hpp"
#include "src/model/adapter_set.hpp"
#include "src/model/engine.hpp"
#include "src/model/kv_cache.hpp"
#include "src/model/model_state.hpp"

namespace flywheel::inline v0 {
namespace detail {

/// Rows that a computation gives besides the logits of the last token.
struct row_request {
  std::int64_t first = 0;  ///< Position of the first row.
  std::int64_t every = 1;  ///< Rows are at first + i * every up to `last`, and at `last`.
  std::int64_t last = 0;   ///< Less than `first`: no rows.
  /// Receives rows [positions.size(), n_vocab] in order of position; called once or more.
  function_ref<result<void>(std::span<const std::int64_t> positions, std::span<const float> rows)> receive;
};

/// Calls a progress callback not more than 20 times a second, and always for the end.
class paced_progress {
 public:
  paced_progress(const progress& callback, std::string_view what) noexcept : callback_(callback), what_(what) {}
  void report(std::uint64_t done, std::uint64_t total);

 private:
  const progress& callback_;
  std::string_view what_;
  std::chrono::steady_clock::time_point next_{};
};

}  // namespace detail

/// Invariant: the cache holds the keys and values of tokens[0 .. cache.size()), and cache.size() <= tokens.size().
/// Tokens behind that are computed when somebody needs them. has_logits: `logits` are those after the last token.
struct session::state {
  std::shared_ptr<const flywheel::model::state> model;  // first: it goes last
  session_options options;                              // resolved
  detail::kv_cache cache;
  std::unique_ptr<detail::workspace> work;  // none in a batch, which computes with its own
  buffer logits;                            // [n_vocab]
  buffer next_logits;  // [n_vocab]: written by a computation and swapped when it has succeeded; none in a batch
  std::vector<token_id> tokens;
  bool has_logits = false;
  detail::adapter_set adapters = {};  // options.adapters, too
  std::int64_t foreign = 0;           // tokens at the front that were computed with other adapters; see settle()

  /// `alone`: with what compute() needs.
  [[nodiscard]] static result<std::unique_ptr<state>> create(std::shared_ptr<const flywheel::model::state> model,
                                                             const session_options& options, bool alone = true);
  /// Gives a session that was in a batch what compute() needs. On error nothing has changed.
  [[nodiscard]] result<void> become_alone();
  [[nodiscard]] const detail::engine& engine() const noexcept { return *model->engine; }
  [[nodiscard]] std::size_t n_vocab() const noexcept { return logits.size() / sizeof(float); }
  [[nodiscard]] std::span<const float> logits_view() const noexcept {
    return {reinterpret_cast<const float*>(logits.data()), has_logits ? n_vocab() : 0};
  }

  /// On error nothing has changed.
  [[nodiscard]] result<void> set_adapters(std::span<const adapter_use> uses);
  /// Before the cache grows: what is not in it is foreign no more.
  void settle() noexcept { foreign = std::min(foreign, cache.size()); }
  /// Appends without computing. Slides when that is allowed and needed.
  [[nodiscard]] result<void> append(std::span<const token_id> ids, bool may_slide);
  /// Appends one valid token; slides a full context. Allocates at most the token list's growth.
  void push(token_id id);
  /// How many tokens have to be computed before the last one's logits are there.
  [[nodiscard]] std::int64_t pending() const noexcept {
    return has_logits ? 0 : static_cast<std::int64_t>(tokens.size()) - cache.size();
  }
  /// Makes the last token pending when its logits are missing though it is in the cache.
  void recompute_last() noexcept {
    const auto n = static_cast<std::int64_t>(tokens.size());
    if (!has_logits && n > 0 && cache.size() == n) cache.truncate(n - 1);
  }
  /// Computes what is missing, and the logits of the last token (recomputing it when only they are missing). On error
  /// the tokens are unchanged and whole chunks stay computed.
  [[nodiscard]] result<void> compute(const control& control, const detail::row_request* rows = nullptr);
  /// Makes `wanted` the tokens, and keeps the part of the cache that is true for them, too. `wanted` gets the old ones.
  void replace_tokens(std::vector<token_id>& wanted) noexcept;

 private:
  [[nodiscard]] result<void> compute_chunks(const control& control, const detail::row_request* rows);
};

namespace detail {

/// Puts tokens and logits back when it goes without commit(). The cache keeps what is still true.
class transaction {
 public:
  /// Before up to `incoming` tokens are appended. `many_steps`: logits may be replaced before commit(). Throws
  /// std::bad_alloc.
  transaction(session::state& s, std::size_t incoming, bool many_steps = false);
  ~transaction();
  transaction(const transaction&) = delete;
  transaction& operator=(const transaction&) = delete;
  void commit() noexcept { state_ = nullptr; }

 private:
  session::state* state_;
  std::size_t count_;
  bool has_logits_;
  std::optional<std::vector<token_id>> tokens_;  ///< When the context may slide.
  std::optional<std::vector<float>> logits_;     ///< When they may be replaced.
};

}  // namespace detail
}  // namespace flywheel::inline v0
