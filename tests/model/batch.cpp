// Batches: members come, go and share, and are what they would be alone.
#include "flywheel/model/batch.hpp"

#include <algorithm>
#include <map>
#include <thread>

#include "fake_engine.hpp"
#include "support/catch.hpp"
#include "support/failing_new.hpp"

namespace flywheel {
namespace {

using detail::kv_layout;
using test::alike;
using test::copy;
using test::fake_model;
using test::fake_shape;
using test::logits_after;
using test::some_ids;

const kv_layout mixed = test::mixed_layers(), windows = test::windowed_layers();

fake_shape shaped(const kv_layout& kv) {
  fake_shape shape;
  shape.kv = kv;
  return shape;
}

session_options with(std::int32_t n_ctx, std::int32_t n_batch) {
  session_options o;
  o.n_ctx = n_ctx;
  o.n_batch = n_batch;
  return o;
}

batch make(const fake_model& m, const session_options& o) { return std::move(batch::create(m.handle, o)).value(); }

std::vector<token_id> joined(std::vector<token_id> a, const std::vector<token_id>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

void run(batch& b) {
  while (b.pending() > 0) REQUIRE(*b.step() > 0);
}

/// Every ready member has the logits that its tokens have alone.
void check_ready(const batch& b, const fake_model& m) {
  for (const batch::member who : b.ready()) CHECK(copy(b.logits(who)) == logits_after(m, b.tokens(who)));
}

TEST_CASE("members that come, go on and leave at any step have the results of sessions", "[batch]") {
  for (const kv_layout& kv : {alike(2, 2, 8), windows, mixed})
    for (const std::int32_t n_batch : {1, 5, 16, 64}) {
      CAPTURE(kv.slots.size(), n_batch);
      const fake_model m(shaped(kv));
      batch b = make(m, with(250, n_batch));
      test::tiny_random random(static_cast<std::uint64_t>(n_batch));
      const auto below = [&](int n) { return static_cast<int>(random.uniform() * static_cast<float>(n)); };
      std::map<batch::member, std::vector<token_id>> want;
      const std::vector<token_id> common = some_ids(90, 77);
      std::vector<session> alone;
      for (int round = 0; round < 60; ++round) {
        switch (below(6)) {
          case 0:
          case 1: {
            if (want.size() > 5) break;
            std::vector<token_id> ids =
                some_ids(static_cast<std::size_t>(1 + below(40)), 100U + static_cast<unsigned>(round));
            if (below(2) == 0) ids = joined({common.begin(), common.begin() + 20 + below(71)}, ids);
            want[*b.join(ids)] = ids;
            break;
          }
          case 2:
            if (want.empty()) break;
            if (below(3) > 0) {
              REQUIRE(b.remove(want.begin()->first));
            } else {
              alone.push_back(std::move(b.leave(want.begin()->first)).value());
              CHECK(copy(alone.back().tokens()) == want.begin()->second);
            }
            want.erase(want.begin());
            break;
          case 3:
            if (alone.empty()) break;
            if (below(2) == 0) REQUIRE(alone.back().compute());
            want[*b.join(std::move(alone.back()))] = {};
            alone.pop_back();
            want.rbegin()->second = copy(b.tokens(want.rbegin()->first));
            break;
          default:
            for (int i = below(4); i > 0; --i) {
              const std::size_t pending = b.pending();
              const result<std::size_t> computed = b.step();
              REQUIRE(computed);
              CHECK(*computed <= static_cast<std::size_t>(n_batch));
              CHECK((*computed > 0) == (pending > 0));
              for (const batch::member who : copy(b.ready())) {
                CHECK(copy(b.logits(who)) == logits_after(m, want.at(who)));
                if (want.at(who).size() > 200) continue;
                const std::vector<token_id> more = some_ids(static_cast<std::size_t>(1 + below(2) * below(9)), who);
                REQUIRE(b.append(who, more));
                CHECK(b.logits(who).empty());
                want[who] = joined(want[who], more);
              }
            }
        }
        CHECK(b.size() == want.size());
      }
      run(b);
      CHECK(b.ready().size() == want.size());
      for (const auto& [who, ids] : want) CHECK(copy(b.tokens(who)) == ids);
      check_ready(b, m);
      for (session& s : alone) {
        REQUIRE(s.compute());
        CHECK(copy(s.logits()) == logits_after(m, s.tokens()));
      }
    }
}

TEST_CASE("a common beginning is computed and stored once", "[batch]") {
  for (const kv_layout& kv : {alike(2, 2, 8), windows, mixed})
    for (const std::int32_t n_batch : {16, 50, 512}) {
      CAPTURE(kv.slots.size(), n_batch);
      const fake_model m(shaped(kv));
      batch b = make(m, with(250, n_batch));
      const std::vector<token_id> common = some_ids(130, 1);
      std::vector<batch::member> members;
      for (std::uint64_t i = 0; i < 5; ++i) members.push_back(*b.join(joined(common, some_ids(7, 10 + i))));
      run(b);
      CHECK(m.engine->tokens_computed == 130 + 5 * 7);
      const std::size_t shared = b.kv_bytes().value();
      // One that comes when the beginning is there, and goes on differently inside a page.
      members.push_back(*b.join(joined(common, some_ids(7, 20))));
      run(b);
      const bool rewinds = kv == alike(2, 2, 8) || kv == windows;
      CHECK(m.engine->tokens_computed == 130 + (rewinds ? 6 : 5) * 7 + (rewinds ? 0 : 137));
      // The same prompt again: only the last token is computed for its logits.
      const std::int64_t before = m.engine->tokens_computed;
      members.push_back(*b.join(joined(common, some_ids(7, 10))));
      run(b);
      if (rewinds) CHECK(m.engine->tokens_computed == before + 1);
      check_ready(b, m);
      CHECK(b.ready().size() == 7);
      std::size_t separate = 0;
      batch other = make(m, with(250, n_batch));
      for (std::uint64_t i = 0; i < 5; ++i) {
        (void)*other.join(joined(some_ids(130, 50 + i), some_ids(7, 10 + i)));
        run(other);
      }
      separate = other.kv_bytes().value();
      CHECK(shared < separate * 2 / 3);
    }
}

TEST_CASE("long prompts do not hold up who is generating", "[batch]") {
  const fake_model m;
  batch b = make(m, with(250, 8));
  const batch::member one = *b.join(some_ids(3, 1)), two = *b.join(some_ids(3, 2));
  run(b);
  const batch::member late = *b.join(some_ids(100, 3));
  for (int i = 0; i < 15; ++i) {
    for (const batch::member who : {one, two}) REQUIRE(b.append(who, some_ids(1, 9)));
    CHECK(*b.step() == 8);
    CHECK(!b.logits(one).empty());
    CHECK(!b.logits(two).empty());
    CHECK(b.logits(late).empty());
  }
  run(b);
  check_ready(b, m);
  CHECK(b.ready().size() == 3);

  // More members than a step has room for: each gets its turn.
  batch narrow = make(m, with(250, 2));
  std::vector<batch::member> members;
  for (std::uint64_t i = 0; i < 5; ++i) members.push_back(*narrow.join(some_ids(1, i)));
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 3; ++i) REQUIRE(narrow.step());
    CHECK(narrow.ready().size() == 5);
    check_ready(narrow, m);
    for (const batch::member who : members) REQUIRE(narrow.append(who, some_ids(1, 4)));
  }
}

TEST_CASE("a step that fails or is cancelled leaves every member as it was", "[batch]") {
  for (const kv_layout& kv : {alike(2, 2, 8), mixed}) {
    const fake_model m(shaped(kv));
    batch b = make(m, with(250, 32));
    const batch::member one = *b.join(some_ids(70, 1)), two = *b.join(some_ids(64, 2)), idle = *b.join(some_ids(9, 3));
    run(b);
    REQUIRE(b.append(one, some_ids(1, 4)));
    REQUIRE(b.append(two, some_ids(40, 5)));
    const std::vector<float> logits = copy(b.logits(idle));
    const std::size_t pending = b.pending();
    std::stop_source stop;
    int failures = 0;
    const auto unchanged = [&](const result<std::size_t>& r, errc code) {
      REQUIRE(!r);
      CHECK(r.error().code == code);
      CHECK(b.pending() == pending);
      CHECK(b.tokens(two).size() == 104);
      CHECK(copy(b.ready()) == std::vector<batch::member>{idle});
      CHECK(copy(b.logits(idle)) == logits);
      ++failures;
    };
    m.engine->before_layer = [](std::int32_t layer, const detail::chunk&) -> result<void> {
      if (layer == 1) return error{errc::device, "lost", {}};
      return {};
    };
    unchanged(b.step(), errc::device);
    m.engine->before_layer = [&](std::int32_t, const detail::chunk&) -> result<void> {
      stop.request_stop();
      return {};
    };
    control c;
    c.stop = stop.get_token();
    unchanged(b.step(c), errc::cancelled);
    m.engine->before_layer = nullptr;
    unchanged(b.step(c), errc::cancelled);
    CHECK(failures == 3);
    run(b);
    CHECK(b.ready().size() == 3);
    check_ready(b, m);
  }
}

TEST_CASE("what cannot be done with a batch is said", "[batch]") {
  const fake_model m, other;
  CHECK(batch::create({}, {}).error().code == errc::invalid_argument);
  CHECK(batch::create(m.handle, with(10, 0)).error().code == errc::invalid_argument);
  batch b = make(m, with(10, 300));
  CHECK(b.options().n_batch == 300);
  CHECK(b.model().shared() == m.handle.shared());
  CHECK(*b.step() == 0);
  const batch::member who = *b.join(std::vector<token_id>{});
  CHECK(b.pending() == 0);
  CHECK(*b.step() == 0);
  CHECK(b.append(who, some_ids(11)).error().code == errc::context_full);
  CHECK(b.append(who, std::vector<token_id>{320}).error().code == errc::invalid_argument);
  CHECK(b.join(std::vector<token_id>{-1}).error().code == errc::invalid_argument);
  CHECK(b.size() == 1);
  REQUIRE(b.append(who, some_ids(10)));
  run(b);
  check_ready(b, m);
  CHECK(b.arena_bytes() >= 300 * 16 + 2 * 320 * sizeof(float));
  REQUIRE(b.remove(who));
  CHECK(b.kv_bytes().value() == 0);
  CHECK(b.remove(who).error().code == errc::invalid_argument);
  CHECK(b.leave(who).error().code == errc::invalid_argument);
  CHECK(b.append(who, some_ids(1)).error().code == errc::invalid_argument);
  CHECK(b.logits(who).empty());
  CHECK(b.tokens(who).empty());
  CHECK(b.join(other.open()).error().code == errc::invalid_argument);
  session_options f32;
  f32.kv_type = dtype::f32;
  CHECK(b.join(m.open(f32)).error().message.find("F32") != std::string::npos);
  // A member may slide, as a session does.
  session_options slide = with(40, 16);
  slide.when_full = when_full::slide;
  slide.keep = 2;
  batch sliding = make(m, slide);
  const batch::member slid = *sliding.join(some_ids(39));
  run(sliding);
  for (int i = 0; i < 5; ++i) {
    REQUIRE(sliding.append(slid, some_ids(1, 3)));
    run(sliding);
  }
  CHECK(sliding.tokens(slid).size() < 30);
  check_ready(sliding, m);
}

TEST_CASE("prompts go on although more members decode than a step has places", "[batch]") {
  for (const std::int32_t n_batch : {1, 4}) {
    CAPTURE(n_batch);
    const fake_model m;
    batch b = make(m, with(250, n_batch));
    std::vector<batch::member> decoding;
    for (std::uint64_t i = 0; i < 4; ++i) decoding.push_back(*b.join(some_ids(1, i + 1)));
    run(b);
    const batch::member late = *b.join(some_ids(9, 50));
    for (int i = 0; i < 60 && b.logits(late).empty(); ++i) {
      for (const batch::member who : decoding)
        if (!b.logits(who).empty()) REQUIRE(b.append(who, some_ids(1, 70)));
      REQUIRE(*b.step() == static_cast<std::size_t>(n_batch));
    }
    CHECK_FALSE(b.logits(late).empty());
    check_ready(b, m);
  }
}

TEST_CASE("a beginning is not shared between sequences that rotate keys differently", "[batch]") {
  kv_layout kv = alike(2, 2, 8);
  kv.long_rotation_beyond = 100;
  const fake_model m(shaped(kv));
  for (const std::int32_t n_ctx : {90, 200}) {
    session first = m.open(with(n_ctx, 16));
    const std::vector<token_id> ids = some_ids(40);
    REQUIRE(first.prefill(ids));
    batch b = make(m, with(80, 16));
    REQUIRE(b.join(std::move(first)));
    REQUIRE(b.join(joined(ids, some_ids(5, 9))));
    m.engine->tokens_computed = 0;
    run(b);
    CHECK(m.engine->tokens_computed == (n_ctx == 90 ? 5 : 45));
  }
}

TEST_CASE("a stream that outlives its session's move into a batch ends with an error", "[batch]") {
  const fake_model m;
  session alone = m.open(with(100, 16));
  REQUIRE(alone.prefill(some_ids(5)));
  generate_options greedy;
  greedy.sampler = sampler_options::greedy();
  greedy.max_tokens = 10;
  greedy.ignore_eos = true;
  generation_stream stream = alone.stream(greedy);
  auto at = stream.begin();
  batch b = make(m, with(100, 16));
  REQUIRE(b.join(std::move(alone)));
  while (at != stream.end()) ++at;
  REQUIRE_FALSE(stream.status());
  CHECK(stream.status().error().code == errc::invalid_argument);
}

generate_options sampling(std::uint64_t seed, std::int32_t max_tokens) {
  generate_options o;
  o.max_tokens = max_tokens;
  o.sampler.seed = seed;
  o.sampler.repetition_penalty = 1.1F;
  o.logprobs = true;
  o.top_logprobs = 3;
  return o;
}

void check_same(const generation& a, const generation& b) {
  CHECK(a.ids == b.ids);
  CHECK(a.text == b.text);
  CHECK(a.logprobs == b.logprobs);
  CHECK(a.reason == b.reason);
  CHECK(a.end_token == b.end_token);
  REQUIRE(a.top.size() == b.top.size());
  for (std::size_t i = 0; i < a.top.size(); ++i)
    CHECK((a.top[i].id == b.top[i].id && a.top[i].logprob == b.top[i].logprob));
}

TEST_CASE("many requests are generated as each would be alone", "[batch]") {
  for (const kv_layout& kv : {alike(2, 2, 8), mixed})
    for (const std::int32_t at_once : {1, 3, 20}) {
      const fake_model m(shaped(kv));
      const session_options o = with(200, 32);
      std::vector<generate_request> requests;
      const std::vector<token_id> common = some_ids(40, 5);
      for (std::uint64_t i = 0; i < 12; ++i) {
        generate_request r;
        r.prompt = joined(i % 2 == 0 ? common : std::vector<token_id>{}, some_ids(5 + 9 * i, i));
        r.options = sampling(i, static_cast<std::int32_t>(3 * i));
        r.options.ignore_eos = i % 3 != 0;
        if (i == 7) r.options.max_tokens = -1;  // until the context is full
        if (i == 8) r.options.stop_texts = {"a", "e"};
        requests.push_back(std::move(r));
      }
      std::vector<generation> want;
      for (const generate_request& r : requests) {
        session s = m.open(o);
        REQUIRE(s.prefill(r.prompt));
        want.push_back(std::move(s.generate(r.options)).value());
      }
      std::vector<std::string> streamed(requests.size());
      for (std::size_t i = 0; i < requests.size(); ++i)
        requests[i].each = [&streamed, i](const generation_step& step) {
          streamed[i] += step.text;
          return true;
        };
      batch b = make(m, o);
      const batch::member bystander = *b.join(some_ids(100, 99));
      std::uint64_t reported = 0;
      control c;
      c.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view) {
        CHECK(total == 12);
        reported = done;
      };
      const auto got = std::move(b.generate(requests, at_once, c)).value();
      REQUIRE(got.size() == 12);
      for (std::size_t i = 0; i < got.size(); ++i) {
        CAPTURE(i);
        REQUIRE(got[i]);
        check_same(*got[i], want[i]);
        CHECK(streamed[i] == want[i].text);
      }
      CHECK(want[7].reason == stop_reason::context_full);
      CHECK(reported == 12);
      CHECK(b.size() == 1);
      CHECK(copy(b.logits(bystander)) == logits_after(m, b.tokens(bystander)));
    }
}

TEST_CASE("what ends one request leaves the others alone", "[batch]") {
  const fake_model m;
  const session_options o = with(200, 32);
  std::vector<generate_request> requests(7);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].prompt = some_ids(20, i);
    requests[i].options = sampling(i, 20);
    requests[i].options.ignore_eos = true;
  }
  session s = m.open(o);
  REQUIRE(s.prefill(requests[0].prompt));
  const generation want = std::move(s.generate(requests[0].options)).value();
  requests[1].prompt.clear();
  requests[2].options.top_logprobs = -1;
  requests[3].each = [](const generation_step&) -> bool { throw std::runtime_error("mine"); };
  int steps = 0;
  requests[4].each = [&](const generation_step&) { return ++steps < 5; };
  std::stop_source stop;
  requests[5].options.control.stop = stop.get_token();
  requests[5].each = [&](const generation_step&) { return stop.request_stop(), true; };
  requests[6].prompt = some_ids(201);
  batch b = make(m, o);
  const auto got = std::move(b.generate(requests)).value();
  check_same(*got[0], want);
  CHECK(got[1].error().code == errc::invalid_argument);
  CHECK(got[2].error().code == errc::invalid_argument);
  CHECK(got[3].error().message == "mine");
  CHECK((got[4]->reason == stop_reason::callback && got[4]->ids.size() == 5));
  CHECK((got[5]->reason == stop_reason::cancelled && got[5]->ids.size() == 1));
  CHECK(got[6].error().code == errc::context_full);
  CHECK(b.size() == 0);
  CHECK(b.generate(requests, 0).error().code == errc::invalid_argument);
  CHECK(b.generate({}).value().empty());

  // Cancelling all: what is there is given, nobody is left behind.
  std::stop_source all;
  int given = 0;
  std::vector<generate_request> many(4);
  for (generate_request& r : many) {
    r.prompt = some_ids(10);
    r.options = sampling(1, -1);
    r.options.ignore_eos = true;
    r.each = [&](const generation_step&) { return ++given == 10 ? (all.request_stop(), true) : true; };
  }
  control c;
  c.stop = all.get_token();
  const auto ended = std::move(b.generate(many, 2, c)).value();
  std::size_t ids = 0;
  for (const auto& r : ended) {
    CHECK(r->reason == stop_reason::cancelled);
    ids += r->ids.size();
  }
  CHECK(ids >= 10);
  CHECK(ended[3]->ids.empty());
  CHECK(b.size() == 0);

  // An engine that fails ends all; the batch stays usable.
  m.engine->before_layer = [](std::int32_t, const detail::chunk&) -> result<void> {
    return error{errc::device, "lost", {}};
  };
  CHECK(b.generate(many).error().code == errc::device);
  CHECK(b.size() == 0);
  m.engine->before_layer = nullptr;
  check_same(*std::move(b.generate(std::span(requests).first(1))).value()[0], want);
}

TEST_CASE("running out of memory in a batch is an error that changes nothing", "[batch]") {
  const auto memory = std::make_shared<test::failing_resource>();
  {
    const fake_model m(shaped(mixed), memory);
    const auto prepare = [&](std::vector<batch::member>& members) {
      batch b = make(m, with(250, 32));
      for (std::uint64_t i = 0; i < 3; ++i) members.push_back(*b.join(joined(some_ids(64, 1), some_ids(3, i))));
      run(b);
      for (const batch::member who : members) REQUIRE(b.append(who, some_ids(70, who)));
      return b;
    };
    std::uint64_t failures = 0;
    const auto check = [&](const char* what, auto&& call) {
      INFO(what);
      for (const bool resource : {false, true})
        for (std::uint64_t n = 0;; ++n) {
          std::vector<batch::member> members;
          batch b = prepare(members);
          bool failed = false, worked = false;
          {
            const test::fail_allocations guard(resource ? UINT64_MAX : n);
            memory->allocations_left = resource ? static_cast<std::int64_t>(n) : -1;
            const auto r = call(b, members);
            memory->allocations_left = -1;
            worked = static_cast<bool>(r);
            failed = !r && r.error().code == errc::out_of_memory;
          }
          CHECK((worked || failed));
          if (worked) break;
          ++failures;
          REQUIRE(b.size() == 3);
          CHECK(b.pending() == 210);
          if (n % 3 != 0) continue;
          run(b);
          for (const batch::member who : members) CHECK(b.tokens(who).size() == 137);
          check_ready(b, m);
        }
    };
    using members = std::vector<batch::member>;
    const std::vector<token_id> ten = some_ids(10);
    check("join", [&](batch& b, members&) { return b.join(ten); });
    check("leave", [](batch& b, members& who) { return b.leave(who[1]); });
    check("step", [](batch& b, members&) { return b.step(); });
    CHECK(failures > 15);
    // Steps of what has room already allocate nothing.
    std::vector<batch::member> who;
    batch b = prepare(who);
    run(b);
    for (const batch::member x : who) REQUIRE(b.append(x, some_ids(2, 2)));
    run(b);
    for (const batch::member x : who) REQUIRE(b.append(x, some_ids(1, 2)));
    const std::uint64_t before = test::allocation_count();
    const result<std::size_t> computed = b.step();
    // The fake engine copies the states of the layer that recurs.
    CHECK(test::allocation_count() - before <= 3);
    CHECK(*computed == 3);
  }
  CHECK(memory->live_bytes == 0);
}

TEST_CASE("batches and sessions of one model run at the same time", "[batch]") {
  const fake_model m(shaped(mixed), nullptr, 2);
  const std::vector<token_id> common = some_ids(100, 1);
  session root = m.open(with(250, 32));
  REQUIRE(root.prefill(common));
  std::vector<session> forks;
  for (int i = 0; i < 6; ++i) forks.push_back(std::move(root.fork()).value());
  std::vector<std::thread> threads;
  std::vector<int> good(3);
  for (std::size_t t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      batch b = std::move(batch::create(m.handle, with(250, 16))).value();
      std::vector<batch::member> members;
      for (std::size_t i = 0; i < 2; ++i) members.push_back(*b.join(std::move(forks[2 * t + i])));
      bool same = true;
      for (std::uint64_t round = 0; round < 10; ++round) {
        for (const batch::member who : members) same = same && b.append(who, some_ids(1 + round, t * 8 + who));
        while (b.pending() > 0 && same) same = same && b.step().has_value();
      }
      good[t] = same && copy(b.logits(members[1])) == logits_after(m, b.tokens(members[1]));
    });
  REQUIRE(root.prefill(some_ids(30, 5)));
  for (std::thread& t : threads) t.join();
  for (const int g : good) CHECK(g == 1);
  CHECK(copy(root.logits()) == logits_after(m, joined(common, some_ids(30, 5))));
}

}  // namespace
}  // namespace flywheel
