#include "flywheel/model/batch.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/model/generator.hpp"
#include "src/model/session_state.hpp"

namespace flywheel::inline v0 {
namespace {

/// A common beginning that saves less is not worth a wait or a copy of a page.
constexpr std::int64_t least_shared = 16;

/// Length of the common beginning, which is looked for up to `most` tokens.
std::int64_t common_tokens(const session::state& a, const session::state& b, std::int64_t most) {
  const auto end = a.tokens.begin() + most;
  return std::mismatch(a.tokens.begin(), end, b.tokens.begin()).first - a.tokens.begin();
}

/// How much of the first `positions` of a cache another sequence could go on from.
std::int64_t usable(const detail::kv_cache& cache, std::int64_t positions) {
  if (cache.size() <= positions) return cache.size();
  return cache.can_truncate(positions) ? positions : 0;
}

/// Any fixed order of adapters.
bool before(const device::adapter_share& a, const device::adapter_share& b) {
  if (a.weights != b.weights) return std::less<>()(a.weights, b.weights);
  return a.scale < b.scale;
}

}  // namespace

struct batch::state {
  struct entry {
    member name = 0;
    std::unique_ptr<session::state> held;
  };
  /// What a member computes in a step.
  struct share {
    std::size_t index = 0;  ///< Of the member.
    std::int64_t tokens = 0;
  };

  std::shared_ptr<const flywheel::model::state> model;
  session_options options;
  std::unique_ptr<detail::workspace> work;
  std::vector<entry> members;  // in the order of joining
  std::vector<member> ready;
  member next_name = 1;
  std::size_t turn = 0;  // the member that decodes first, when not all can
  buffer logits;         // [rows, n_vocab]: a row for each member

  // Of a step; kept so that a step allocates nothing.
  std::vector<share> shares;
  std::vector<std::int64_t> limits;  // [members]: where others' wait for a beginning ends; 0: nothing more to compute
  std::vector<token_id> ids;
  std::vector<detail::chunk_part> parts;
  std::vector<std::int32_t> rows;

  [[nodiscard]] entry* find(member who) noexcept {
    const auto at = std::lower_bound(members.begin(), members.end(), who,
                                     [](const entry& e, member name) { return e.name < name; });
    return at != members.end() && at->name == who ? &*at : nullptr;
  }
  [[nodiscard]] result<entry*> at(member who) {
    if (entry* e = find(who)) return e;
    return error{errc::invalid_argument, "the batch has no member " + std::to_string(who), "batch"};
  }
  [[nodiscard]] result<member> add(std::unique_ptr<session::state> s);
  void erase(entry* e) noexcept {
    members.erase(members.begin() + (e - members.data()));
    list_ready();
  }
  void list_ready() noexcept {
    ready.clear();  // there is room for all members
    for (const entry& e : members)
      if (e.held->has_logits) ready.push_back(e.name);
  }

  [[nodiscard]] result<void> share_beginning(std::size_t index);
  [[nodiscard]] result<void> plan();
  [[nodiscard]] result<void> compute(const control& control);
  [[nodiscard]] result<std::size_t> step(const control& control);
};

batch::batch(std::unique_ptr<state> s) noexcept : state_(std::move(s)) {}
batch::batch(batch&&) noexcept = default;
batch& batch::operator=(batch&&) noexcept = default;
batch::~batch() = default;

result<batch> batch::create(const flywheel::model& model, const session_options& options) {
  return detail::guarded([&]() -> result<batch> {
    if (!model) return error{errc::invalid_argument, "the model handle is empty; open a model first", "model"};
    // A session knows how to resolve options, and which of them are wrong.
    FLYWHEEL_TRY(const auto probe, session::state::create(model.shared(), options, false));
    auto made = std::make_unique<state>();
    made->model = model.shared();
    made->options = probe->options;
    made->options.n_batch = options.n_batch;
    FLYWHEEL_TRY(made->work, made->model->engine->new_workspace(options.n_batch));
    const auto n_batch = static_cast<std::size_t>(options.n_batch);
    made->ids.reserve(n_batch);
    return batch(std::move(made));
  });
}

result<batch::member> batch::state::add(std::unique_ptr<session::state> s) {
  FLYWHEEL_CHECK(work->fit(s->adapters.width));
  const std::size_t n = members.size() + 1;
  const std::size_t row = s->logits.size();
  const std::size_t wanted = std::min(n, static_cast<std::size_t>(options.n_batch));
  if (logits.size() / row < wanted) {
    FLYWHEEL_TRY(logits, buffer::allocate(std::max(wanted, 2 * (logits.size() / row)) * row, model->ctx.memory()));
  }
  members.reserve(n);
  ready.reserve(n);
  shares.reserve(n);
  limits.reserve(n);
  parts.reserve(n);
  rows.reserve(n);
  members.push_back({next_name, std::move(s)});
  list_ready();
  return next_name++;
}

result<batch::member> batch::join(std::span<const token_id> ids) { return join(ids, state_->options.adapters); }

result<batch::member> batch::join(std::span<const token_id> ids, std::span<const adapter_use> adapters) {
  return detail::guarded([&]() -> result<member> {
    session_options options = state_->options;
    options.adapters.assign(adapters.begin(), adapters.end());
    FLYWHEEL_TRY(auto made, session::state::create(state_->model, options, false));
    FLYWHEEL_CHECK(made->append(ids, true));
    return state_->add(std::move(made));
  });
}

result<batch::member> batch::join(session alone) {
  return detail::guarded([&]() -> result<member> {
    session::state& s = *alone.state_;
    if (s.model != state_->model)
      return error{errc::invalid_argument, "the session belongs to another model than the batch", "session"};
    if (s.cache.kv_type() != state_->options.kv_type)
      return error{errc::invalid_argument,
                   "the session's cache is " + std::string(to_string(s.cache.kv_type())) + ", the batch's are " +
                       std::string(to_string(state_->options.kv_type)),
                   "session"};
    s.work.reset();
    s.next_logits = buffer();
    return state_->add(std::move(alone.state_));
  });
}

result<session> batch::leave(member who) {
  return detail::guarded([&]() -> result<session> {
    FLYWHEEL_TRY(state::entry* const e, state_->at(who));
    FLYWHEEL_CHECK(e->held->become_alone());
    session out(std::move(e->held));
    state_->erase(e);
    return out;
  });
}

result<void> batch::remove(member who) {
  return detail::guarded([&]() -> result<void> {
    FLYWHEEL_TRY(state::entry* const e, state_->at(who));
    state_->erase(e);
    return {};
  });
}

result<void> batch::append(member who, std::span<const token_id> ids) {
  return detail::guarded([&]() -> result<void> {
    FLYWHEEL_TRY(state::entry* const e, state_->at(who));
    FLYWHEEL_CHECK(e->held->append(ids, true));
    state_->list_ready();
    return {};
  });
}

result<void> batch::set_adapters(member who, std::span<const adapter_use> adapters) {
  return detail::guarded([&]() -> result<void> {
    FLYWHEEL_TRY(state::entry* const e, state_->at(who));
    FLYWHEEL_TRY(const auto probe, detail::adapter_set::create(*state_->model, adapters));
    FLYWHEEL_CHECK(state_->work->fit(probe.width));
    return e->held->set_adapters(adapters);
  });
}

/// Takes over the longest beginning that another member has computed, or waits (limits[index] = 0) for a longer one
/// that a member before this one is about to compute. Only members in front are waited for, so somebody always goes on.
result<void> batch::state::share_beginning(std::size_t index) {
  session::state& own = *members[index].held;
  const auto n = static_cast<std::int64_t>(own.tokens.size());
  const session::state* source = nullptr;
  std::int64_t best = own.cache.size(), awaited = 0;
  std::size_t leader = 0;
  for (std::size_t i = 0; i < members.size(); ++i) {
    const session::state& other = *members[i].held;
    // The last token is computed in any case, for its logits.
    const std::int64_t most = std::min(n - 1, static_cast<std::int64_t>(other.tokens.size()));
    if (i == index || most < own.cache.size() + least_shared) continue;
    const detail::kv_layout& layout = own.cache.layout();
    if (own.adapters != other.adapters || own.foreign > 0 || other.foreign > 0) continue;
    if (layout.rotates_long(own.options.n_ctx) != layout.rotates_long(other.options.n_ctx)) continue;
    const std::int64_t common = common_tokens(own, other, most);
    if (const std::int64_t there = usable(other.cache, common); there > best) {
      best = there;
      source = &other;
    }
    if (i < index && other.cache.size() < common && other.pending() > 0 && common > awaited) {
      awaited = common;
      leader = i;
    }
  }
  if (awaited > best && awaited >= own.cache.size() + least_shared) {
    limits[index] = 0;
    // So that windows and recurrent states are those at the end of the common beginning.
    if (limits[leader] > 0) limits[leader] = std::min(limits[leader], awaited);
    return {};
  }
  if (source == nullptr || best < own.cache.size() + least_shared) return {};
  FLYWHEEL_TRY(auto shared, source->cache.fork());
  shared.truncate(best);
  own.cache = std::move(shared);
  return {};
}

result<void> batch::state::plan() {
  shares.clear();
  limits.assign(members.size(), std::numeric_limits<std::int64_t>::max());
  const std::size_t count = members.size();
  bool prompts = false, adapted = false;
  for (const entry& e : members) {
    e.held->recompute_last();
    e.held->settle();
    adapted = adapted || !e.held->adapters.shares.empty();
    prompts = prompts || e.held->pending() > 1;
  }
  // One place is left for prompts. Where there is only one place, prompts take turns with the others, token by token.
  const std::int64_t places = prompts && options.n_batch > 1 ? options.n_batch - 1 : options.n_batch;
  const std::int64_t longest = options.n_batch > 1 ? 1 : std::numeric_limits<std::int64_t>::max();
  std::size_t next_turn = turn;
  for (std::size_t i = 0; i < count && std::cmp_less(shares.size(), places); ++i) {
    const std::size_t index = (turn + i) % count;
    const std::int64_t pending = members[index].held->pending();
    if (pending < 1 || pending > longest) continue;
    shares.push_back({index, 1});
    limits[index] = 0;
    next_turn = (index + 1) % count;
  }
  turn = std::cmp_equal(shares.size(), places) ? next_turn : 0;
  std::int64_t room = options.n_batch - static_cast<std::int64_t>(shares.size());
  // The longest sequences take longest: they are not to be the last ones that a worker finds.
  // Those with equal adapters are neighbours, so that these are read once for all.
  std::sort(shares.begin(), shares.end(), [&](const share& a, const share& b) {
    const session::state &left = *members[a.index].held, &right = *members[b.index].held;
    if (adapted && left.adapters != right.adapters)
      return std::ranges::lexicographical_compare(left.adapters.shares, right.adapters.shares, before);
    return left.cache.size() > right.cache.size();
  });
  if (room == 0) return {};
  for (std::size_t i = 0; i < count; ++i)
    if (members[i].held->pending() > 1) FLYWHEEL_CHECK(share_beginning(i));
  // When no prompt can use the place that was left for it, because they wait for each other, a member that decodes
  // does.
  for (const bool prompt : {true, false})
    for (std::size_t i = 0; i < count && room > 0; ++i) {
      const session::state& s = *members[i].held;
      const std::int64_t tokens = std::min({s.pending(), limits[i] - s.cache.size(), room});
      if (tokens <= 0 || (s.pending() > 1) != prompt) continue;
      shares.push_back({i, tokens});
      room -= tokens;
    }
  return {};
}

result<void> batch::state::compute(const control& control) {
  ids.clear();
  parts.clear();
  rows.clear();
  for (const share& x : shares) {
    session::state& s = *members[x.index].held;
    const std::int64_t begin = s.cache.size();
    FLYWHEEL_CHECK(s.cache.reserve(begin + x.tokens));
    ids.insert(ids.end(), s.tokens.begin() + begin, s.tokens.begin() + begin + x.tokens);
    parts.push_back({x.tokens, &s.cache, s.options.n_ctx, s.adapters.shares});
    if (x.tokens == s.pending()) rows.push_back(static_cast<std::int32_t>(ids.size()) - 1);
  }
  const auto n_vocab = static_cast<std::size_t>(model->engine->n_vocab());
  const std::span<float> out(reinterpret_cast<float*>(logits.mutable_data()), rows.size() * n_vocab);
  detail::chunk c;
  c.ids = ids;
  c.parts = parts;
  c.output_rows = rows;
  c.stop = control.stop;
  FLYWHEEL_CHECK(model->engine->forward(c, *work, out));
  // Nothing fails any more.
  const float* row = out.data();
  for (const share& x : shares) {
    session::state& s = *members[x.index].held;
    const bool complete = x.tokens == s.pending();
    s.cache.advance(s.cache.size() + x.tokens);
    if (!complete) continue;
    std::memcpy(s.logits.mutable_data(), row, n_vocab * sizeof(float));
    s.has_logits = true;
    row += n_vocab;
  }
  list_ready();
  return {};
}

result<std::size_t> batch::state::step(const control& control) {
  if (control.stopped()) return error{errc::cancelled, "cancelled", {}};
  FLYWHEEL_CHECK(plan());
  if (shares.empty()) return std::size_t{0};
  result<void> done = detail::guarded([&] { return compute(control); });
  if (!done) {
    for (const share& x : shares) {
      detail::kv_cache& cache = members[x.index].held->cache;
      cache.truncate(cache.size());  // gives back pages that were reserved
    }
    return std::move(done).error();
  }
  return ids.size();
}

result<std::size_t> batch::step(const control& control) {
  return detail::guarded([&] { return state_->step(control); });
}

std::size_t batch::pending() const noexcept {
  std::int64_t total = 0;
  for (const state::entry& e : state_->members)
    if (!e.held->has_logits && !e.held->tokens.empty()) total += std::max<std::int64_t>(1, e.held->pending());
  return static_cast<std::size_t>(total);
}

std::span<const batch::member> batch::ready() const noexcept { return state_->ready; }

std::span<const float> batch::logits(member who) const noexcept {
  const state::entry* const e = state_->find(who);
  return e == nullptr ? std::span<const float>{} : e->held->logits_view();
}

std::span<const token_id> batch::tokens(member who) const noexcept {
  const state::entry* const e = state_->find(who);
  return e == nullptr ? std::span<const token_id>{} : std::span<const token_id>(e->held->tokens);
}

std::span<const adapter_use> batch::adapters(member who) const noexcept {
  const state::entry* const e = state_->find(who);
  return e == nullptr ? std::span<const adapter_use>{} : std::span<const adapter_use>(e->held->options.adapters);
}

std::size_t batch::size() const noexcept { return state_->members.size(); }
const session_options& batch::options() const noexcept { return state_->options; }
model batch::model() const noexcept { return flywheel::model(state_->model); }

result<std::size_t> batch::kv_bytes() const {
  return detail::guarded([&]() -> result<std::size_t> {
    std::map<const void*, std::size_t> blocks;
    std::size_t total = 0;
    for (const state::entry& e : state_->members)
      total += e.held->cache.visit_blocks([&](const void* block, std::size_t bytes) { blocks[block] = bytes; });
    for (const auto& [block, bytes] : blocks) total += bytes;
    return total;
  });
}

std::size_t batch::arena_bytes() const noexcept {
  std::size_t total = state_->work->bytes() + state_->logits.size();
  for (const state::entry& e : state_->members) total += e.held->logits.size();
  return total;
}

namespace {

/// A request that is being served.
struct running {
  std::size_t index = 0;  ///< Of the request.
  batch::member who = 0;
  std::unique_ptr<detail::generator> made;  ///< Once the prompt has been computed.
};

/// Lets a request take all steps that are possible without computing. True once it has ended.
result<bool> advance(detail::generator& made, const session::state& held, const generation_callback& each) {
  while (!made.needs_logits() || held.has_logits) {
    FLYWHEEL_TRY(const bool more, made.next());
    if (!more) return true;
    if (each && !each(made.step())) {
      made.stop();
      return true;
    }
  }
  return false;
}

}  // namespace

result<std::vector<result<generation>>> batch::generate(std::span<const generate_request> requests,
                                                        std::int32_t at_once, const control& control) {
  std::vector<running> active;
  auto done = detail::guarded([&]() -> result<std::vector<result<generation>>> {
    if (at_once < 1) return error{errc::invalid_argument, "at least one request runs at a time", "at_once"};
    std::vector<result<generation>> out(requests.size(), generation{});
    active.reserve(std::min(requests.size(), static_cast<std::size_t>(at_once)));
    detail::paced_progress progress(control.progress, "generate");
    flywheel::control quiet;
    quiet.stop = control.stop;
    std::size_t next = 0;
    bool cancelled = false;
    const auto end = [&](std::size_t i, result<generation> outcome) {
      out[active[i].index] = std::move(outcome);
      (void)remove(active[i].who);
      active.erase(active.begin() + static_cast<std::ptrdiff_t>(i));
      progress.report(next - active.size(), requests.size());
    };
    const auto serve = [&](running& r) -> result<bool> {
      session::state& held = *state_->find(r.who)->held;
      if (!held.has_logits && r.made == nullptr) return false;
      if (r.made == nullptr) {
        FLYWHEEL_TRY(r.made, detail::generator::create(held, requests[r.index].options));
      }
      FLYWHEEL_TRY(const bool ended, advance(*r.made, held, requests[r.index].each));
      return ended;
    };
    while (next < requests.size() || !active.empty()) {
      cancelled = cancelled || control.stopped();
      for (; active.size() < static_cast<std::size_t>(at_once) && next < requests.size(); ++next) {
        if (cancelled) {
          out[next]->reason = stop_reason::cancelled;
          continue;
        }
        if (requests[next].prompt.empty()) {
          out[next] = error{errc::invalid_argument, "the prompt holds no tokens", "generate_request::prompt"};
          continue;
        }
        const auto& adapters = requests[next].adapters;
        if (auto who = join(requests[next].prompt, adapters ? *adapters : state_->options.adapters); who)
          active.push_back({next, *who, nullptr});
        else
          out[next] = std::move(who).error();
      }
      if (!cancelled) {
        if (auto computed = state_->step(quiet); !computed) {
          if (computed.error().code != errc::cancelled) return std::move(computed).error();
          cancelled = true;
        }
      }
      for (std::size_t i = active.size(); i-- > 0;) {
        running& r = active[i];
        const bool stopped = cancelled || (r.made == nullptr && requests[r.index].options.control.stopped());
        const result<bool> ended = detail::guarded([&]() -> result<bool> {
          if (!stopped) return serve(r);
          if (r.made) r.made->stop();  // gives the text that it held back
          return true;
        });
        if (!ended) {
          end(i, ended.error());
        } else if (*ended) {
          generation text = r.made ? std::move(*r.made).take() : generation{};
          if (stopped) text.reason = stop_reason::cancelled;
          end(i, std::move(text));
        }
      }
      state_->list_ready();
    }
    return out;
  });
  for (const running& r : active) (void)remove(r.who);  // after an error
  return done;
}

}  // namespace flywheel::inline v0
