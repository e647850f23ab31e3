#include "src/model/session_state.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/model/session_sizes.hpp"

namespace flywheel::inline v0 {
namespace {

/// Rows of a request that are computed at a time take no more than this.
constexpr std::size_t rows_budget = std::size_t{32} << 20;

error cancelled() { return error{errc::cancelled, "cancelled", {}}; }

/// The positions in begin .. end-1 that a request wants, at most `limit` of them; `end` moves to the first one that has
/// to wait.
void select_rows(const detail::row_request& rows, std::int64_t begin, std::int64_t& end, std::size_t limit,
                 std::vector<std::int64_t>& out) {
  out.clear();
  const std::int64_t behind = std::max<std::int64_t>(begin - rows.first, 0);
  std::int64_t p = rows.first + (behind + rows.every - 1) / rows.every * rows.every;
  p = std::min(p, rows.last);
  while (p < end && p >= begin) {
    if (out.size() == limit) {
      end = p;
      return;
    }
    out.push_back(p);
    if (p == rows.last) return;
    p = rows.every < rows.last - p ? p + rows.every : rows.last;
  }
}

/// See when_full::slide.
void drop_older_half(std::vector<token_id>& list, const session_options& options) noexcept {
  const auto kept = list.begin() + options.keep;
  list.erase(kept, kept + (list.end() - kept) / 2);
}

}  // namespace

void detail::paced_progress::report(std::uint64_t done, std::uint64_t total) {
  if (!callback_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_ && done != total) return;
  next_ = now + std::chrono::milliseconds(50);
  callback_(done, total, what_);
}

result<std::unique_ptr<session::state>> session::state::create(std::shared_ptr<const flywheel::model::state> model,
                                                               const session_options& options, bool alone) {
  const detail::engine& engine = *model->engine;
  std::pmr::memory_resource* memory = model->ctx.memory();
  FLYWHEEL_TRY(const detail::session_sizes sizes, detail::sizes_of(engine, options));
  FLYWHEEL_TRY(detail::kv_cache cache, detail::kv_cache::create(engine.kv(), options.kv_type, memory));
  const std::size_t row = sizeof(float) * static_cast<std::size_t>(engine.n_vocab());
  FLYWHEEL_TRY(buffer logits, buffer::allocate(row, memory));
  FLYWHEEL_TRY(detail::adapter_set adapters, detail::adapter_set::create(*model, options.adapters));
  auto made = std::unique_ptr<state>(new state{std::move(model),
                                               sizes.options,
                                               std::move(cache),
                                               nullptr,
                                               std::move(logits),
                                               {},
                                               {},
                                               false,
                                               std::move(adapters)});
  if (alone) FLYWHEEL_CHECK(made->become_alone());
  return made;
}

result<void> session::state::become_alone() {
  FLYWHEEL_TRY(buffer row, buffer::allocate(logits.size(), model->ctx.memory()));
  FLYWHEEL_TRY(auto space, engine().new_workspace(options.n_batch));
  FLYWHEEL_CHECK(space->fit(adapters.width));
  work = std::move(space);
  next_logits = std::move(row);
  return {};
}

result<void> session::state::set_adapters(std::span<const adapter_use> uses) {
  FLYWHEEL_TRY(detail::adapter_set next, detail::adapter_set::create(*model, uses));
  std::vector<adapter_use> listed(next.uses);
  if (work != nullptr) FLYWHEEL_CHECK(work->fit(next.width));
  settle();
  if (next != adapters) foreign = cache.size();
  adapters = std::move(next);
  options.adapters = std::move(listed);
  return {};
}

result<void> session::state::append(std::span<const token_id> ids, bool may_slide) {
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || static_cast<std::size_t>(ids[i]) >= n_vocab())
      return error{errc::invalid_argument,
                   "token " + std::to_string(ids[i]) + " is not in the vocabulary of " + std::to_string(n_vocab()),
                   "ids[" + std::to_string(i) + "]"};
  const std::size_t room = static_cast<std::size_t>(options.n_ctx) - tokens.size();
  if (ids.size() > room && !(may_slide && options.when_full == when_full::slide))
    return error{errc::context_full,
                 "the context of " + std::to_string(options.n_ctx) + " tokens holds " + std::to_string(tokens.size()) +
                     " and has no room for " + std::to_string(ids.size()) +
                     " more; give fewer, clear or truncate the session, or create it with a larger n_ctx" +
                     (may_slide ? " or when_full::slide" : ""),
                 "session"};
  if (ids.empty()) return {};
  if (ids.size() > room) {
    std::vector<token_id> list;
    list.reserve(static_cast<std::size_t>(options.n_ctx));
    list.assign(tokens.begin(), tokens.end());
    for (const token_id id : ids) {
      if (list.size() == static_cast<std::size_t>(options.n_ctx)) drop_older_half(list, options);
      list.push_back(id);
    }
    replace_tokens(list);
  } else if (const std::size_t before = tokens.size(); tokens.capacity() - before >= ids.size()) {
    tokens.resize(before + ids.size());
    std::copy(ids.begin(), ids.end(), tokens.begin() + static_cast<std::ptrdiff_t>(before));
  } else {
    // `ids` may point into the list itself: the old one stays until the new one is complete.
    std::vector<token_id> longer;
    longer.reserve(std::max(before + ids.size(), 2 * before));
    longer.assign(tokens.begin(), tokens.end());
    longer.insert(longer.end(), ids.begin(), ids.end());
    tokens.swap(longer);
  }
  has_logits = false;
  return {};
}

void session::state::push(token_id id) {
  if (tokens.size() == static_cast<std::size_t>(options.n_ctx)) {
    drop_older_half(tokens, options);
    cache.truncate(options.keep);
  }
  tokens.push_back(id);
  has_logits = false;
}

void session::state::replace_tokens(std::vector<token_id>& wanted) noexcept {
  const auto differ = std::mismatch(tokens.begin(), tokens.end(), wanted.begin(), wanted.end()).first;
  cache.truncate(differ - tokens.begin());
  tokens.swap(wanted);
}

result<void> session::state::compute(const control& control, const detail::row_request* rows) {
  if (tokens.empty())
    return error{errc::invalid_argument, "the session holds no tokens; prefill some first", "session"};
  if (rows == nullptr) {
    if (has_logits) return {};
    if (work == nullptr)  // a stream outlived the session that it is of
      return error{errc::invalid_argument, "the session has joined a batch, which computes for it now", "session"};
    recompute_last();
  } else {
    cache.truncate(rows->first);
  }
  settle();
  result<void> done = detail::guarded([&] { return compute_chunks(control, rows); });
  if (!done) cache.truncate(cache.size());  // gives back pages that were reserved
  return done;
}

result<void> session::state::compute_chunks(const control& control, const detail::row_request* rows) {
  const std::size_t width = n_vocab();
  const std::int64_t start = cache.size();
  const std::int64_t n = static_cast<std::int64_t>(tokens.size());
  std::vector<std::int64_t> positions;
  std::vector<std::int32_t> outputs;
  buffer memory;
  std::size_t limit = 0;
  if (rows != nullptr && rows->first <= rows->last) {
    const std::size_t wanted = static_cast<std::size_t>((rows->last - rows->first) / rows->every) + 2;
    limit = std::max<std::size_t>(1, rows_budget / (sizeof(float) * width));
    limit = std::min({limit, wanted, static_cast<std::size_t>(options.n_batch)});
    positions.reserve(limit);
    outputs.reserve(limit + 1);
    FLYWHEEL_TRY(memory, buffer::allocate((limit + 1) * width * sizeof(float), model->ctx.memory()));
  }
  const std::span<float> scratch(reinterpret_cast<float*>(memory.mutable_data()), memory.size() / sizeof(float));
  const std::span<float> last_logits(reinterpret_cast<float*>(next_logits.mutable_data()), n_vocab());
  detail::paced_progress progress(control.progress, "prefill");

  while (cache.size() < n) {
    if (control.stopped()) return cancelled();
    const std::int64_t begin = cache.size();
    std::int64_t end = std::min<std::int64_t>(n, begin + options.n_batch);
    if (limit > 0) select_rows(*rows, begin, end, limit, positions);
    const bool need_last = end == n;

    FLYWHEEL_CHECK(cache.reserve(end));
    const detail::chunk_part whole{end - begin, &cache, options.n_ctx, adapters.shares};
    detail::chunk c;
    c.ids = std::span(tokens).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    c.parts = std::span(&whole, 1);
    c.stop = control.stop;
    const auto last_row = static_cast<std::int32_t>(end - 1 - begin);
    std::span<float> out;
    if (!positions.empty()) {
      outputs.clear();
      for (const std::int64_t p : positions) outputs.push_back(static_cast<std::int32_t>(p - begin));
      if (need_last && outputs.back() != last_row) outputs.push_back(last_row);
      c.output_rows = outputs;
      out = scratch.first(outputs.size() * width);
    } else if (need_last) {
      c.output_rows = std::span(&last_row, 1);
      out = last_logits;
    }
    FLYWHEEL_CHECK(engine().forward(c, *work, out));
    cache.advance(end);
    if (!positions.empty()) {
      if (need_last) std::memcpy(last_logits.data(), out.last(width).data(), width * sizeof(float));
      FLYWHEEL_CHECK(rows->receive(positions, out.first(positions.size() * width)));
    }
    progress.report(static_cast<std::uint64_t>(end - start), static_cast<std::uint64_t>(n - start));
  }
  std::swap(logits, next_logits);
  has_logits = true;
  return {};
}

namespace detail {

transaction::transaction(session::state& s, std::size_t incoming, bool many_steps)
    : state_(&s), count_(s.tokens.size()), has_logits_(s.has_logits) {
  const bool may_slide =
      s.options.when_full == when_full::slide && incoming > static_cast<std::size_t>(s.options.n_ctx) - s.tokens.size();
  if (may_slide) tokens_.emplace(s.tokens);
  if (many_steps && has_logits_) logits_.emplace(s.logits_view().begin(), s.logits_view().end());
}

transaction::~transaction() {
  if (state_ == nullptr) return;
  if (tokens_) {
    state_->replace_tokens(*tokens_);
  } else {
    state_->tokens.resize(count_);  // only ever shortens
    state_->cache.truncate(static_cast<std::int64_t>(count_));
  }
  if (logits_) std::memcpy(state_->logits.mutable_data(), logits_->data(), logits_->size() * sizeof(float));
  state_->has_logits = has_logits_;
}

}  // namespace detail
}  // namespace flywheel::inline v0
