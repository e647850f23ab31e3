// Several sequences of one model, computed together: each weight that is read serves all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/model/generation.hpp"
#include "flywheel/model/model.hpp"
#include "flywheel/model/session.hpp"
#include "flywheel/text/tokenizer.hpp"

namespace flywheel::inline v0 {

/// One of many texts to generate: see batch::generate.
struct generate_request {
  std::vector<token_id> prompt;  ///< Not empty.
  /// As for session::generate. Its control.stop ends this request alone, before the next token.
  generate_options options;
  generation_callback each;                          ///< May be empty. Return false to stop this request.
  std::optional<std::vector<adapter_use>> adapters = {};  ///< Nothing: those of the batch's options.
};

/// Continuous batching: members join and leave at any time, and every step computes tokens of all of them in one pass.
///
///     batch b = batch::create(model, options).value();
///     auto first = b.join(ids).value(), second = b.join(other_ids).value();
///     while (running) {
///       b.step().value();
///       for (const auto m : b.ready()) b.append(m, {&(next = choose(b.logits(m))), 1}).value();
///     }
///
/// A step computes at most options().n_batch tokens: first the pending token of every member that has just one, then,
/// in the order of joining, as much of longer prompts as there is room for. Hence long prompts delay running
/// generations by no more than a step of n_batch tokens.
///
/// Members with the same beginning share it: what one has computed, others take over with its pages, and while a member
/// computes a beginning of 16 tokens or more that others need, too, these wait for it. Only members with the same
/// adapters and scales, unchanged since their first token, share.
///
/// A member's tokens, logits and log-probabilities are, bit for bit, those of a session alone, whoever else is in the
/// batch. A call that fails or is cancelled leaves every member as it was. Movable; a moved-from batch can only be
/// destroyed or assigned to. One thread at a time; different batches and sessions of one model may run at the same
/// time. It keeps its model loaded.
class FLYWHEEL_API batch {
 public:
  /// Names a member; never given twice by a batch.
  using member = std::uint64_t;

  /// Without members. `options` are those of the sessions that join as token ids; n_batch counts the tokens of all
  /// members together, and at most so many members are computed in a step. Errors: those of model::new_session.
  [[nodiscard]] static result<batch> create(const flywheel::model& model, const session_options& options = {});
  batch(batch&&) noexcept;
  batch& operator=(batch&&) noexcept;
  ~batch();

  /// A new member that holds `ids`, which may be empty; they are computed in the following steps. Errors:
  /// invalid_argument (an id out of range), context_full, out_of_memory.
  [[nodiscard]] result<member> join(std::span<const token_id> ids);
  /// The same with these adapters in place of those of options(). A step reads the model once, whatever adapters its
  /// members use. Errors: those of session::set_adapters, too.
  [[nodiscard]] result<member> join(std::span<const token_id> ids, std::span<const adapter_use> adapters);
  /// A session becomes a member, with its tokens, cache, logits and options (but for n_batch). Errors: invalid_argument
  /// (another model or KV type), out_of_memory; the session is lost then: fork it before if that matters.
  [[nodiscard]] result<member> join(session alone);
  /// A member becomes a session that goes on alone. Errors: invalid_argument (no such member), out_of_memory; then it
  /// stays.
  [[nodiscard]] result<session> leave(member who);
  /// A member goes with all that it holds. Error: invalid_argument when there is no such member.
  [[nodiscard]] result<void> remove(member who);
  /// Appends tokens, which the following steps compute; logits(who) are gone. A full context slides when the options
  /// say so. Errors: invalid_argument (no such member, an id out of range), context_full, out_of_memory.
  [[nodiscard]] result<void> append(member who, std::span<const token_id> ids);

  /// As session::set_adapters, for a member. Errors: invalid_argument (no such member, those of the session's),
  /// out_of_memory; then nothing has changed.
  [[nodiscard]] result<void> set_adapters(member who, std::span<const adapter_use> adapters);
  /// A member's adapters; empty when there is no such member. Valid until the next call that is not const.
  [[nodiscard]] std::span<const adapter_use> adapters(member who) const noexcept;

  /// Computes up to n_batch tokens; gives how many, 0 when nothing was pending. Progress is not reported. Errors:
  /// cancelled (within a tile of work), out_of_memory, device.
  [[nodiscard]] result<std::size_t> step(const control& control = {});
  /// Tokens that are held but not computed: while there are any, step() has something to do.
  [[nodiscard]] std::size_t pending() const noexcept;
  /// Members whose last token has been computed, so that logits() are there, in the order of joining. Valid until the
  /// next call that is not const.
  [[nodiscard]] std::span<const member> ready() const noexcept;
  /// Logits [n_vocab] after a member's last token; empty when it was not computed yet, or there is no such member.
  /// Valid until the next call that is not const.
  [[nodiscard]] std::span<const float> logits(member who) const noexcept;
  /// A member's tokens; empty when there is no such member. Valid until the next call that is not const.
  [[nodiscard]] std::span<const token_id> tokens(member who) const noexcept;
  /// How many members there are.
  [[nodiscard]] std::size_t size() const noexcept;

  /// Generates for all requests, at most `at_once` (at least 1) of them at the same time, in their order; the next one
  /// starts as soon as one ends. Gives each request's text or error, in the order of the requests: what is wrong with
  /// one of them, or what its callback throws, leaves the others alone. Requests that `control` cancels end with
  /// stop_reason::cancelled and what they have so far. Progress counts requests. Pending tokens of members that are
  /// already there are computed along. Errors that end all: invalid_argument (at_once), out_of_memory, device.
  [[nodiscard]] result<std::vector<result<generation>>> generate(std::span<const generate_request> requests,
                                                                 std::int32_t at_once = 8, const control& control = {});

  /// As created, with defaults filled in.
  [[nodiscard]] const session_options& options() const noexcept;
  [[nodiscard]] flywheel::model model() const noexcept;
  /// Bytes now held by the members' caches; what they share counts once. Error: out_of_memory.
  [[nodiscard]] result<std::size_t> kv_bytes() const;
  /// Bytes now held for intermediate results and logits.
  [[nodiscard]] std::size_t arena_bytes() const noexcept;

 private:
  struct state;
  explicit batch(std::unique_ptr<state> s) noexcept;
  std::unique_ptr<state> state_;
};

}  // namespace flywheel::inline v0
