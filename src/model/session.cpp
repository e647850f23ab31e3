#include "flywheel/model/session.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/model/generator.hpp"
#include "src/model/session_state.hpp"

namespace flywheel::inline v0 {
namespace {

error nothing_given() { return error{errc::invalid_argument, "no tokens were given", "ids"}; }

}  // namespace

session::session(std::unique_ptr<state> s) noexcept : state_(std::move(s)) {}
session::session(session&&) noexcept = default;
session& session::operator=(session&&) noexcept = default;
session::~session() = default;

result<session> model::new_session(const session_options& options) const {
  return detail::guarded([&]() -> result<session> {
    if (state_ == nullptr)
      return error{errc::invalid_argument, "the model handle is empty; open a model first", "model"};
    FLYWHEEL_TRY(auto made, session::state::create(state_, options));
    const std::int32_t trained = state_->engine->n_ctx_train();
    if (trained > 0 && made->options.n_ctx > trained && state_->ctx.logs(log_level::warning))
      state_->ctx.log(log_level::warning, "n_ctx " + std::to_string(made->options.n_ctx) + " is more than the " +
                                              std::to_string(trained) + " tokens the model was trained for");
    return session(std::move(made));
  });
}

result<void> session::prefill(std::span<const token_id> ids, const control& control) {
  return detail::guarded([&]() -> result<void> {
    if (ids.empty()) return nothing_given();
    detail::transaction all(*state_, ids.size());
    FLYWHEEL_CHECK(state_->append(ids, true));
    FLYWHEEL_CHECK(state_->compute(control));
    all.commit();
    return {};
  });
}

result<void> session::prefill(std::string_view text, const control& control) {
  return detail::guarded([&]() -> result<void> {
    const text::tokenizer& vocabulary = state_->model->tokenizer;
    if (!vocabulary)
      return error{errc::unsupported, "the model has no vocabulary; give token ids instead of text", "prefill"};
    text::encode_options how;
    how.add_special = state_->tokens.empty();
    FLYWHEEL_TRY(const std::vector<token_id> ids, vocabulary.encode(text, how));
    return prefill(ids, control);
  });
}

result<void> session::decode(token_id id, const control& control) { return prefill(std::span(&id, 1), control); }

result<void> session::compute(const control& control) {
  return detail::guarded([&] { return state_->compute(control); });
}

std::span<const float> session::logits() const noexcept { return state_->logits_view(); }

result<void> session::prefill_rows(std::span<const token_id> ids, std::size_t every, const row_callback& row,
                                   const control& control) {
  return detail::guarded([&]() -> result<void> {
    if (ids.empty()) return nothing_given();
    if (!row) return error{errc::invalid_argument, "there is no callback", "row"};
    const auto before = static_cast<std::int64_t>(state_->tokens.size());
    const std::size_t last = ids.size() - 1;
    detail::transaction all(*state_, 0);
    FLYWHEEL_CHECK(state_->append(ids, false));
    const auto give = [&](std::span<const std::int64_t> positions, std::span<const float> rows) -> result<void> {
      const std::size_t width = rows.size() / positions.size();
      for (std::size_t i = 0; i < positions.size(); ++i)
        FLYWHEEL_CHECK(row(static_cast<std::size_t>(positions[i] - before), rows.subspan(i * width, width)));
      return {};
    };
    detail::row_request request{before, 1, before + static_cast<std::int64_t>(last), give};
    if (every == 0)
      request.first = request.last;
    else
      request.every = static_cast<std::int64_t>(std::min(every, ids.size()));
    FLYWHEEL_CHECK(state_->compute(control, &request));
    all.commit();
    return {};
  });
}

result<std::vector<float>> session::score(std::span<const token_id> ids, const control& control) {
  return detail::guarded([&]() -> result<std::vector<float>> {
    if (ids.empty()) return nothing_given();
    state& s = *state_;
    const auto before = static_cast<std::int64_t>(s.tokens.size());
    std::vector<float> scores(ids.size() - (before == 0 ? 1 : 0));
    std::size_t done = 0;
    detail::transaction all(s, 0);
    const bool has_first = s.has_logits;
    // Checked before the logits are asked about an id.
    FLYWHEEL_CHECK(s.append(ids, false));
    if (has_first) {
      const std::span<const float> row(reinterpret_cast<const float*>(s.logits.data()), s.n_vocab());
      scores[done++] = static_cast<float>(log_probability(row, s.tokens[static_cast<std::size_t>(before)]));
    }
    const auto take = [&](std::span<const std::int64_t> positions, std::span<const float> rows) -> result<void> {
      const std::size_t width = s.n_vocab();
      parallel_for(s.model->ctx.executor(), positions.size(), 1, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i)
          scores[done + i] = static_cast<float>(
              log_probability(rows.subspan(i * width, width), s.tokens[static_cast<std::size_t>(positions[i] + 1)]));
      });
      done += positions.size();
      return {};
    };
    // The row of a position scores the token behind it.
    const std::int64_t first = before == 0 || has_first ? before : before - 1;
    const auto last = static_cast<std::int64_t>(s.tokens.size()) - 2;
    const detail::row_request request{first, 1, last, take};
    FLYWHEEL_CHECK(s.compute(control, &request));
    all.commit();
    return scores;
  });
}

result<generation> session::generate(const generate_options& options, const generation_callback& each) {
  return detail::guarded([&]() -> result<generation> {
    detail::transaction all(*state_, static_cast<std::size_t>(state_->options.n_ctx), true);
    FLYWHEEL_TRY(auto made, detail::generator::create(*state_, options));
    while (true) {
      FLYWHEEL_TRY(const bool more, made->next());
      if (!more) break;
      if (each && !each(made->step())) made->stop();
    }
    all.commit();
    return std::move(*made).take();
  });
}

generation_stream session::stream(const generate_options& options) noexcept {
  return generation_stream(detail::guarded([&] { return detail::generator::create(*state_, options); }));
}

result<void> session::set_adapters(std::span<const adapter_use> adapters) {
  return detail::guarded([&] { return state_->set_adapters(adapters); });
}

std::span<const adapter_use> session::adapters() const noexcept { return state_->options.adapters; }
std::span<const token_id> session::tokens() const noexcept { return state_->tokens; }
const session_options& session::options() const noexcept { return state_->options; }
std::int32_t session::n_ctx() const noexcept { return state_->options.n_ctx; }
model session::model() const noexcept { return flywheel::model(state_->model); }
std::size_t session::kv_bytes() const noexcept { return state_->cache.bytes(); }
std::size_t session::arena_bytes() const noexcept {
  return state_->work->bytes() + state_->logits.size() + state_->next_logits.size();
}

result<void> session::truncate(std::size_t count) {
  return detail::guarded([&]() -> result<void> {
    state& s = *state_;
    if (count > s.tokens.size())
      return error{
          errc::invalid_argument,
          "the session holds " + std::to_string(s.tokens.size()) + " tokens, fewer than " + std::to_string(count),
          "count"};
    if (count == s.tokens.size()) return {};
    s.tokens.resize(count);
    s.cache.truncate(static_cast<std::int64_t>(count));
    s.has_logits = false;
    return {};
  });
}

void session::clear() noexcept {
  state_->tokens.clear();
  state_->cache.truncate(0);
  state_->has_logits = false;
}

result<session> session::fork() const {
  return detail::guarded([&]() -> result<session> {
    FLYWHEEL_TRY(auto copy, state::create(state_->model, state_->options));
    FLYWHEEL_TRY(copy->cache, state_->cache.fork());
    copy->tokens = state_->tokens;
    copy->foreign = state_->foreign;
    copy->has_logits = state_->has_logits;
    if (copy->has_logits) std::memcpy(copy->logits.mutable_data(), state_->logits.data(), copy->logits.size());
    return session(std::move(copy));
  });
}

}  // namespace flywheel::inline v0
