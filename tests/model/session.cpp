// Prefill, scoring, embedding, truncation, forks and sliding, on an engine that notices every wrong byte of the cache.
#include "flywheel/model/session.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>

#include "fake_engine.hpp"
#include "src/model/session_sizes.hpp"
#include "support/catch.hpp"

namespace flywheel {
namespace {

using test::alike;
using test::copy;
using test::fake_model;
using test::fake_shape;
using test::logits_after;
using test::snapshot;
using test::some_ids;

session_options with(std::int32_t n_ctx, std::int32_t n_batch = 16, dtype kv_type = dtype::f16) {
  session_options o;
  o.n_ctx = n_ctx;
  o.n_batch = n_batch;
  o.kv_type = kv_type;
  return o;
}

std::span<const token_id> first(const std::vector<token_id>& ids, std::size_t n) { return std::span(ids).first(n); }

TEST_CASE("the same tokens give the same logits however they are cut", "[session]") {
  const fake_model m;
  const std::vector<token_id> ids = some_ids(150);
  for (const dtype type : {dtype::f16, dtype::f32}) {
    const std::vector<float> want = logits_after(m, ids, with(0, 200, type));
    REQUIRE(want.size() == 320);
    for (const std::int32_t n_batch : {1, 3, 63, 64, 65, 150, 1000}) {
      CAPTURE(n_batch);
      session s = m.open(with(160, n_batch, type));
      REQUIRE(s.prefill(ids));
      CHECK(copy(s.logits()) == want);
    }
    session s = m.open(with(160, 16, type));
    REQUIRE(s.prefill(first(ids, 1)));
    CHECK(copy(s.logits()) == logits_after(m, first(ids, 1), with(0, 16, type)));
    REQUIRE(s.prefill(std::span(ids).subspan(1, 70)));
    for (std::size_t i = 71; i < ids.size(); ++i) REQUIRE(s.decode(ids[i]));
    CHECK(copy(s.logits()) == want);
    CHECK(copy(s.tokens()) == ids);
  }
  // Different tokens, order or cache type: different logits, or the engine proves nothing.
  std::vector<token_id> other = ids;
  std::swap(other[0], other[1]);
  CHECK(logits_after(m, other) != logits_after(m, ids));
  CHECK(logits_after(m, ids, with(0, 16, dtype::f32)) != logits_after(m, ids));
}

TEST_CASE("prefill may be given the session's own tokens", "[session]") {
  const fake_model m;
  const std::vector<token_id> ids = some_ids(20);
  session s = m.open(with(200));
  REQUIRE(s.prefill(ids));
  std::vector<token_id> want = ids;
  for (int i = 0; i < 3; ++i) {
    REQUIRE(s.prefill(s.tokens()));
    want.insert(want.end(), want.begin(), want.end());
  }
  CHECK(copy(s.tokens()) == want);
  CHECK(copy(s.logits()) == logits_after(m, want));
}

TEST_CASE("text is encoded with special tokens at the start alone", "[session]") {
  const fake_model m;
  session s = m.open(with(100));
  REQUIRE(s.prefill("hello the"));
  const std::vector<token_id> begin =
      std::move(m.handle.tokenizer().encode("hello the", {.add_special = true})).value();
  CHECK(begin[0] == 1);
  CHECK(copy(s.tokens()) == begin);
  REQUIRE(s.prefill("and"));
  std::vector<token_id> all = begin;
  const std::vector<token_id> more = std::move(m.handle.tokenizer().encode("and")).value();
  all.insert(all.end(), more.begin(), more.end());
  CHECK(copy(s.tokens()) == all);
  CHECK(s.prefill("").error().code == errc::invalid_argument);
  fake_shape shape;
  shape.vocabulary = false;
  const fake_model mute(shape);
  session t = mute.open(with(100));
  CHECK(t.prefill("hello").error().code == errc::unsupported);
}

TEST_CASE("wrong arguments are refused and change nothing", "[session]") {
  const fake_model m;
  session s = m.open(with(64));
  CHECK(s.logits().empty());
  CHECK(s.compute().error().code == errc::invalid_argument);
  REQUIRE(s.prefill(some_ids(10)));
  const snapshot before(s);
  const auto refused = [&](const auto& r, errc code) { return !r && r.error().code == code && snapshot(s) == before; };
  CHECK(refused(s.prefill(std::vector<token_id>{}), errc::invalid_argument));
  CHECK(refused(s.prefill(std::vector<token_id>{5, 320}), errc::invalid_argument));
  CHECK(refused(s.prefill(std::vector<token_id>{5, -1}), errc::invalid_argument));
  CHECK(s.prefill(std::vector<token_id>{5, -1}).error().where == "ids[1]");
  CHECK(refused(s.score(std::vector<token_id>{}), errc::invalid_argument));
  CHECK(refused(s.score(std::vector<token_id>{999}), errc::invalid_argument));
  CHECK(refused(s.prefill_rows(some_ids(3), 1, {}), errc::invalid_argument));
  CHECK(refused(s.truncate(11), errc::invalid_argument));
  CHECK(refused(s.prefill(some_ids(55)), errc::context_full));
  CHECK(refused(s.score(some_ids(55)), errc::context_full));
  CHECK(refused(s.prefill_rows(some_ids(55), 1, [](auto, auto) -> result<void> { return {}; }), errc::context_full));
  REQUIRE(s.prefill(some_ids(54)));
  CHECK(s.decode(3).error().code == errc::context_full);
  CHECK(s.tokens().size() == 64);

  const auto option_refused = [&](auto&& change) {
    session_options o;
    change(o);
    const result<session> r = m.handle.new_session(o);
    return !r && r.error().code == errc::invalid_argument && !r.error().where.empty();
  };
  CHECK(option_refused([](auto& o) { o.n_ctx = -1; }));
  CHECK(option_refused([](auto& o) { o.n_batch = 0; }));
  CHECK(option_refused([](auto& o) { o.kv_type = dtype::q4_1; }));
  CHECK(option_refused([](auto& o) { o.kv_type = dtype::q8_0; }));  // heads of 8
  CHECK(option_refused([](auto& o) { o.keep = -1; }));
  CHECK(option_refused([](auto& o) { o.n_ctx = 10, o.keep = 9, o.when_full = when_full::slide; }));
  CHECK(option_refused([](auto& o) { o.when_full = static_cast<when_full>(9); }));
  CHECK(model().new_session().error().code == errc::invalid_argument);
}

TEST_CASE("defaults follow the model, sizes are known before", "[session]") {
  const fake_model m;
  session s = m.open();
  CHECK(s.n_ctx() == 256);
  CHECK(s.options().n_batch == 256);
  fake_shape shape;
  shape.n_ctx_train = 100000;
  CHECK(fake_model(shape).open().n_ctx() == 4096);
  CHECK(s.model().shared() == m.handle.shared());

  for (const std::int32_t n_ctx : {1, 64, 100, 1000}) {
    const session_options o = with(n_ctx, 32);
    const detail::session_sizes sizes = std::move(detail::sizes_of(*m.engine, o)).value();
    session t = m.open(o);
    CHECK(t.kv_bytes() == 0);
    CHECK(t.arena_bytes() == sizes.arena_bytes);
    REQUIRE(t.prefill(some_ids(static_cast<std::size_t>(n_ctx))));
    CHECK(t.kv_bytes() == sizes.kv_bytes);
    t.clear();
    CHECK(t.kv_bytes() < sizes.kv_bytes);
  }
}

TEST_CASE("truncate, clear and compute", "[session]") {
  const fake_model m;
  const std::vector<token_id> ids = some_ids(140);
  session s = m.open(with(200));
  REQUIRE(s.prefill(ids));
  REQUIRE(s.truncate(140));
  CHECK(!s.logits().empty());
  const std::int64_t computed = m.engine->tokens_computed;
  for (const std::size_t n : {139U, 128U, 70U, 64U, 1U}) {
    REQUIRE(s.truncate(n));
    CHECK(s.logits().empty());
    REQUIRE(s.compute());
    CHECK(copy(s.logits()) == logits_after(m, first(ids, n)));
    REQUIRE(s.compute());  // nothing left to do
  }
  CHECK(m.engine->tokens_computed - computed == 5 + 139 + 128 + 70 + 64 + 1);  // 5 here, the rest in logits_after
  REQUIRE(s.prefill(std::span(ids).subspan(1)));
  CHECK(copy(s.logits()) == logits_after(m, ids));
  s.clear();
  CHECK(s.tokens().empty());
  CHECK(s.logits().empty());
  REQUIRE(s.prefill(first(ids, 30)));
  CHECK(copy(s.logits()) == logits_after(m, first(ids, 30)));
}

TEST_CASE("rows of logits are those of every prefix", "[session]") {
  const fake_model m;
  const std::vector<token_id> ids = some_ids(50);
  std::vector<std::vector<float>> prefix;
  for (std::size_t n = 1; n <= ids.size(); ++n) prefix.push_back(logits_after(m, first(ids, n)));
  for (const std::size_t begin : {0U, 1U, 20U})
    for (const std::size_t every : {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{29}, SIZE_MAX}) {
      CAPTURE(begin, every);
      session s = m.open(with(60, 9));
      if (begin > 0) REQUIRE(s.prefill(first(ids, begin)));
      std::vector<std::size_t> got;
      const std::size_t n = ids.size() - begin;
      REQUIRE(s.prefill_rows(std::span(ids).subspan(begin), every,
                             [&](std::size_t p, std::span<const float> row) -> result<void> {
                               CHECK(copy(row) == prefix[begin + p]);
                               got.push_back(p);
                               return {};
                             }));
      std::vector<std::size_t> want;
      for (std::size_t p = 0; p < n; ++p)
        if ((every != 0 && p % every == 0) || p == n - 1) want.push_back(p);
      CHECK(got == want);
      CHECK(copy(s.logits()) == prefix.back());
    }
  // An error of the callback, even for the very last row, undoes the call.
  session s = m.open(with(60, 9));
  REQUIRE(s.prefill(first(ids, 20)));
  const snapshot before(s);
  for (const std::size_t fail_at : {0U, 13U, 29U}) {
    const result<void> r = s.prefill_rows(std::span(ids).subspan(20), 1, [&](std::size_t p, auto) -> result<void> {
      if (p == fail_at) return error{errc::io, "disk full", {}};
      return {};
    });
    CHECK((!r && r.error().code == errc::io));
    CHECK(snapshot(s) == before);
  }
  CHECK_FALSE(s.prefill_rows(first(ids, 3), 1, [](auto, auto) -> result<void> { throw std::runtime_error("no"); }));
  CHECK(snapshot(s) == before);
  REQUIRE(s.prefill(std::span(ids).subspan(20)));
  CHECK(copy(s.logits()) == prefix.back());
}

TEST_CASE("scores are the log-probabilities of each token", "[session]") {
  const fake_model m({}, nullptr, 3);
  const std::vector<token_id> ids = some_ids(60);
  std::vector<float> want;  // [ids.size() - 1]
  for (std::size_t n = 1; n < ids.size(); ++n)
    want.push_back(static_cast<float>(log_probability(logits_after(m, first(ids, n)), ids[n])));
  const auto tail = [&](std::size_t n) {
    return std::vector<float>(want.end() - static_cast<std::ptrdiff_t>(n), want.end());
  };
  session s = m.open(with(64, 7));
  CHECK(*s.score(ids) == want);
  CHECK(copy(s.logits()) == logits_after(m, ids));
  for (const std::size_t held : {1U, 2U, 7U, 59U}) {
    s.clear();
    REQUIRE(s.prefill(first(ids, held)));
    CHECK(*s.score(std::span(ids).subspan(held)) == tail(60 - held));
    // The same when the logits of what is held have to be made first.
    REQUIRE(s.truncate(held));
    CHECK(*s.score(std::span(ids).subspan(held)) == tail(60 - held));
    REQUIRE(s.truncate(held));
    REQUIRE(s.compute());
    CHECK(*s.score(std::span(ids).subspan(held)) == tail(60 - held));
  }
  s.clear();
  CHECK(s.score(first(ids, 1))->empty());
  CHECK(*s.score(std::span(ids).subspan(1, 1)) == std::vector<float>{want[0]});
}

TEST_CASE("rows of a large vocabulary are computed in parts", "[session]") {
  fake_shape shape;
  shape.n_vocab = 1 << 21;  // four rows in 32 MiB
  shape.vocabulary = false;
  const fake_model m(shape);
  const std::vector<token_id> ids = some_ids(11);
  session s = m.open(with(20, 16));
  const std::vector<float> scores = std::move(s.score(ids)).value();
  s.clear();
  std::vector<float> want;
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
    REQUIRE(s.decode(ids[i]));
    want.push_back(static_cast<float>(log_probability(s.logits(), ids[i + 1])));
  }
  CHECK(scores == want);
}

TEST_CASE("cancellation anywhere leaves the session as it was", "[session]") {
  fake_model m;
  const std::vector<token_id> ids = some_ids(50);
  session s = m.open(with(64, 8));
  REQUIRE(s.prefill(first(ids, 10)));
  const snapshot before(s);
  std::stop_source stop;
  const auto cancelled = [&](const auto& r) {
    return !r && r.error().code == errc::cancelled && snapshot(s) == before;
  };
  const std::span<const token_id> rest = std::span(ids).subspan(10);
  // Five chunks of two layers each; stopping before any of them.
  for (int at = 0; at < 10; ++at) {
    CAPTURE(at);
    const auto arm = [&] {
      stop = std::stop_source();
      m.engine->before_layer = [&, count = 0](std::int32_t, const detail::chunk&) mutable -> result<void> {
        if (count++ == at) stop.request_stop();
        return {};
      };
      return control{{}, stop.get_token()};
    };
    CHECK(cancelled(s.prefill(rest, arm())));
    CHECK(cancelled(s.score(rest, arm())));
    CHECK(cancelled(s.prefill_rows(
        rest, 3, [](auto, auto) -> result<void> { return {}; }, arm())));
  }
  m.engine->before_layer = nullptr;
  stop = std::stop_source();
  stop.request_stop();
  CHECK(cancelled(s.prefill(rest, {{}, stop.get_token()})));
  // An engine's other errors behave alike.
  m.engine->before_layer = [](std::int32_t, const detail::chunk& c) -> result<void> {
    if (c.parts[0].cache->size() == 26) return error{errc::device, "lost", {}};
    return {};
  };
  const result<void> r = s.prefill(rest);
  CHECK((!r && r.error().code == errc::device && snapshot(s) == before));
  m.engine->before_layer = nullptr;
  REQUIRE(s.prefill(rest));
  CHECK(copy(s.logits()) == logits_after(m, ids));
}

TEST_CASE("progress counts up to the whole", "[session]") {
  const fake_model m;
  session s = m.open(with(64, 8));
  std::vector<std::uint64_t> done;
  control c;
  c.progress = [&](std::uint64_t d, std::uint64_t total, std::string_view what) {
    CHECK(total == 50);
    CHECK(what == "prefill");
    done.push_back(d);
  };
  REQUIRE(s.prefill(some_ids(50), c));
  REQUIRE(!done.empty());
  CHECK(std::is_sorted(done.begin(), done.end()));
  CHECK(done.back() == 50);
  // What a callback throws becomes an error.
  const snapshot before(s);
  c.progress = [](auto, auto, auto) { throw std::runtime_error("no"); };
  CHECK(s.prefill(some_ids(5), c).error().code == errc::internal);
  CHECK(snapshot(s) == before);
}

TEST_CASE("forks go their own ways", "[session]") {
  const fake_model m;
  const std::vector<token_id> ids = some_ids(100);
  session a = m.open(with(200));
  REQUIRE(a.prefill(ids));
  session b = std::move(a.fork()).value();
  CHECK(snapshot(a) == snapshot(b));
  CHECK(b.n_ctx() == 200);
  REQUIRE(b.prefill(some_ids(30, 2)));
  REQUIRE(a.prefill(some_ids(60, 3)));
  const auto joined = [&](std::vector<token_id> more) {
    std::vector<token_id> all = ids;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  CHECK(copy(a.logits()) == logits_after(m, joined(some_ids(60, 3))));
  CHECK(copy(b.logits()) == logits_after(m, joined(some_ids(30, 2))));
  // Back into a page that both still share.
  REQUIRE(a.truncate(50));
  REQUIRE(a.prefill(some_ids(20, 4)));
  std::vector<token_id> short_ids(ids.begin(), ids.begin() + 50);
  for (const token_id id : some_ids(20, 4)) short_ids.push_back(id);
  CHECK(copy(a.logits()) == logits_after(m, short_ids));
  REQUIRE(b.truncate(100));
  REQUIRE(b.compute());
  CHECK(copy(b.logits()) == logits_after(m, ids));
  // A fork outlives what it came from.
  session c = std::move(b.fork()).value();
  b = m.open();
  REQUIRE(c.decode(7));
  CHECK(copy(c.logits()) == logits_after(m, joined({7})));
  // Truncated: the fork has no logits either.
  REQUIRE(a.truncate(10));
  CHECK(a.fork()->logits().empty());
}

/// What a sliding context holds after `ids` came one by one.
std::vector<token_id> slid(std::span<const token_id> ids, std::size_t n_ctx, std::size_t keep) {
  std::vector<token_id> held;
  for (const token_id id : ids) {
    if (held.size() == n_ctx) {
      std::vector<token_id> next(held.begin(), held.begin() + static_cast<std::ptrdiff_t>(keep));
      const std::size_t drop = (n_ctx - keep) / 2;
      next.insert(next.end(), held.begin() + static_cast<std::ptrdiff_t>(keep + drop), held.end());
      held = next;
    }
    held.push_back(id);
  }
  return held;
}

TEST_CASE("a sliding context is that of a session which held only the tokens kept", "[session]") {
  const fake_model m;
  const std::vector<token_id> ids = some_ids(500);
  for (const auto& [n_ctx, keep] : {std::pair{100, 0}, {100, 4}, {64, 62}, {3, 1}, {2, 0}, {67, 64}}) {
    CAPTURE(n_ctx, keep);
    session_options o = with(n_ctx, 16);
    o.when_full = when_full::slide;
    o.keep = keep;
    for (const std::size_t n : {std::size_t{1}, static_cast<std::size_t>(n_ctx), static_cast<std::size_t>(n_ctx) + 1,
                                std::size_t{333}, std::size_t{500}}) {
      const std::vector<token_id> want =
          slid(first(ids, n), static_cast<std::size_t>(n_ctx), static_cast<std::size_t>(keep));
      session all = m.open(o);
      REQUIRE(all.prefill(first(ids, n)));
      CHECK(copy(all.tokens()) == want);
      CHECK(copy(all.logits()) == logits_after(m, want));
      CHECK(all.kv_bytes() <= detail::sizes_of(*m.engine, o)->kv_bytes);
    }
    session steps = m.open(o);
    std::size_t at = 0;
    for (const std::size_t n : {1U, 30U, 90U, 1U, 1U, 1U, 200U}) {
      REQUIRE(steps.prefill(std::span(ids).subspan(at, n)));
      at += n;
      const std::vector<token_id> want =
          slid(first(ids, at), static_cast<std::size_t>(n_ctx), static_cast<std::size_t>(keep));
      REQUIRE(copy(steps.tokens()) == want);
      REQUIRE(copy(steps.logits()) == logits_after(m, want));
    }
    // Scoring never forgets silently.
    CHECK(steps.score(first(ids, 400)).error().code == errc::context_full);
  }
}

TEST_CASE("a slide that fails leaves the session as it was", "[session]") {
  fake_model m;
  session_options o = with(64, 8);
  o.when_full = when_full::slide;
  o.keep = 5;
  const std::vector<token_id> ids = some_ids(90);
  session s = m.open(o);
  REQUIRE(s.prefill(first(ids, 60)));
  const snapshot before(s);
  for (int at = 0; at < 8; ++at) {
    std::stop_source stop;
    m.engine->before_layer = [&, count = 0](std::int32_t, const detail::chunk&) mutable -> result<void> {
      if (count++ == at) stop.request_stop();
      return {};
    };
    REQUIRE(s.prefill(std::span(ids).subspan(60), {{}, stop.get_token()}).error().code == errc::cancelled);
    REQUIRE(snapshot(s) == before);
    m.engine->before_layer = nullptr;
    // The pages may be gone; what follows recomputes them.
    if (at % 2 == 0) {
      session fork = std::move(s.fork()).value();
      REQUIRE(fork.decode(9));
      std::vector<token_id> want = before.tokens;
      want.push_back(9);
      CHECK(copy(fork.logits()) == logits_after(m, want));
    }
  }
  REQUIRE(s.prefill(std::span(ids).subspan(60)));
  const std::vector<token_id> want = slid(ids, 64, 5);
  CHECK(copy(s.tokens()) == want);
  CHECK(copy(s.logits()) == logits_after(m, want));
}

TEST_CASE("windows and recurrent states change nothing but memory", "[session]") {
  for (const detail::kv_layout& kv : {test::mixed_layers(), test::windowed_layers()}) {
    CAPTURE(kv.slots.size());
    fake_shape shape;
    shape.kv = kv;
    const fake_model m(shape);
    session_options o = with(400, 48);
    o.when_full = when_full::slide;
    session s = m.open(o);
    std::vector<session> others;
    test::tiny_random random(3);
    const auto below = [&](std::size_t n) {
      return static_cast<std::size_t>(random.uniform() * static_cast<float>(n));
    };
    generate_options generating;
    generating.max_tokens = 5;
    generating.ignore_eos = true;
    for (std::uint64_t round = 0; round < 80; ++round) {
      const std::vector<token_id> before = copy(s.tokens());
      const std::vector<token_id> ids = some_ids(1 + below(100), round);
      switch (below(9)) {
        case 0:
          REQUIRE(s.truncate(below(before.size() + 1)));
          break;
        case 1:
          if (!before.empty()) REQUIRE(s.truncate(before.size() - 1));
          break;
        case 2:
          others.push_back(std::move(s.fork()).value());
          break;
        case 3:
          if (!others.empty()) std::swap(s, others[below(others.size())]);
          break;
        case 4: {
          session t = m.open(o);
          REQUIRE(t.restore(*s.save()));
          s = std::move(t);
          break;
        }
        case 5:
          if (!before.empty()) REQUIRE(s.generate(generating));
          break;
        case 6:
          if (before.size() + ids.size() > 400) break;
          REQUIRE(s.prefill_rows(ids, 7, [&](std::size_t i, std::span<const float> row) -> result<void> {
            std::vector<token_id> upto = before;
            upto.insert(upto.end(), ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(i) + 1);
            CHECK(copy(row) == logits_after(m, upto));
            return {};
          }));
          break;
        case 7: {
          std::stop_source stop;
          control c;
          c.stop = stop.get_token();
          int chunks = 0;
          m.engine->before_layer = [&](std::int32_t layer, const detail::chunk&) -> result<void> {
            if (layer == 1 && ++chunks == 2) stop.request_stop();
            return {};
          };
          const result<void> r = s.prefill(ids, c);
          m.engine->before_layer = nullptr;
          if (!r) CHECK(copy(s.tokens()) == before);
          break;
        }
        default:
          REQUIRE(s.prefill(ids));
      }
      if (s.tokens().empty()) continue;
      if (s.logits().empty()) REQUIRE(s.compute());
      CHECK(copy(s.logits()) == logits_after(m, s.tokens()));
    }
    session full = m.open(o);
    REQUIRE(full.prefill(some_ids(400)));
    CHECK(full.kv_bytes() == detail::sizes_of(*m.engine, o)->kv_bytes);
    CHECK(full.kv_bytes() < *detail::kv_cache::bytes_for(alike(2, 1, 8), dtype::f16, 400));
  }
}

TEST_CASE("sessions of one model on several threads", "[session]") {
  const fake_model m({}, nullptr, 2);
  session root = m.open(with(256));
  REQUIRE(root.prefill(some_ids(90)));
  std::vector<std::vector<float>> want;
  for (std::uint64_t i = 0; i < 4; ++i) {
    std::vector<token_id> ids = some_ids(90);
    for (const token_id id : some_ids(40, i + 10)) ids.push_back(id);
    want.push_back(logits_after(m, ids));
  }
  std::vector<session> forks;
  for (int i = 0; i < 4; ++i) forks.push_back(std::move(root.fork()).value());
  std::vector<int> good(4);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      bool same = true;
      for (int round = 0; round < 3; ++round) {
        session mine = std::move(*forks[i].fork());
        for (const token_id id : some_ids(40, i + 10)) same &= mine.decode(id).has_value();
        same &= copy(mine.logits()) == want[i];
        same &= mine.truncate(20).has_value() && mine.score(some_ids(50)).has_value();
      }
      good[i] = same;
    });
  REQUIRE(root.truncate(3));
  REQUIRE(root.prefill(some_ids(50, 5)));
  for (std::thread& t : threads) t.join();
  CHECK(good == std::vector<int>{1, 1, 1, 1});
}

}  // namespace
}  // namespace flywheel
