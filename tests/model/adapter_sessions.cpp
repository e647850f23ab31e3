// Adapters of sessions, of members of a batch and of saved states.
#include "flywheel/model/batch.hpp"
#include "model/adapter_workshop.hpp"
#include "support/failing_new.hpp"

using namespace flywheel;
using namespace flywheel::test;

TEST_CASE("Adapters change between tokens, and what is computed stays", "[adapter]") {
  const workshop w;
  tiny_adapter other{every_product};
  other.seed = 6;
  other.rank = 9;  // more room for projections than before
  const model m = open_base(w.path);
  const adapter a = w.open(m, tiny_adapter{every_product}), b = w.open(m, other);
  const auto ids = adapter_ids(6);
  session s = m.new_session(exact()).value();
  s.prefill(std::span(ids).first(3)).value();
  const std::vector<float> plain = logits_copy(s);
  session untouched = s.fork().value();
  s.set_adapters(adapters{{a, 1}}).value();
  CHECK(s.adapters().size() == 1);
  CHECK(s.options().adapters.size() == 1);
  CHECK(logits_copy(s) == plain);
  s.decode(ids[3]).value();
  session forked = s.fork().value();
  s.set_adapters(adapters{{b, 1}}).value();
  s.decode(ids[4]).value();
  const std::vector<float> changed = logits_copy(s);
  forked.decode(ids[4]).value();
  CHECK(logits_copy(forked) != changed);
  s.set_adapters({}).value();
  s.truncate(3).value();
  for (const token_id id : {ids[3], ids[4]}) {
    s.decode(id).value();
    untouched.decode(id).value();
    CHECK(logits_copy(s) == logits_copy(untouched));
  }
  // The same way again gives the same.
  s.truncate(3).value();
  s.set_adapters(adapters{{a, 1}}).value();
  s.decode(ids[3]).value();
  s.set_adapters(adapters{{b, 1}}).value();
  s.decode(ids[4]).value();
  CHECK(logits_copy(s) == changed);
}

TEST_CASE("Members of a batch have adapters of their own, bit for bit as alone", "[adapter][batch]") {
  tiny_model shape = two_layer_model();
  shape.weights = dtype::q8_0;
  const workshop w(shape);
  for (const unsigned threads : {1U, 2U}) {
    const model m = open_base(w.path, threads);
    std::vector<adapters> sets(1);
    for (std::uint64_t seed = 10; seed < 14; ++seed) {
      tiny_adapter a{every_product};
      a.seed = seed;
      a.rank = static_cast<std::int64_t>(seed) - 8;
      a.dora = seed == 12;
      a.type = seed % 2 == 0 ? dtype::f16 : dtype::f32;
      if (seed == 13) a.weights.insert(a.weights.end(), {"token_embd.weight", "output.weight"});
      sets.push_back({{w.open(m, a), 1}});
    }
    sets.push_back({sets[1][0], sets[2][0]});
    sets.push_back(sets[3]);
    const auto prompt = adapter_ids(40);
    const auto next = adapter_ids(5, 77);
    batch b = batch::create(m, exact()).value();
    std::vector<batch::member> members;
    for (const adapters& set : sets) members.push_back(b.join(prompt, set).value());
    CHECK(b.adapters(members[1]).size() == 1);
    while (b.pending() > 0) (void)b.step().value();
    for (std::size_t t = 0; t < next.size(); ++t) {
      for (const batch::member who : members) b.append(who, {&next[t], 1}).value();
      if (t == 2) b.set_adapters(members[0], sets[2]).value();
      (void)b.step().value();
    }
    for (std::size_t i = 0; i < sets.size(); ++i) {
      CAPTURE(threads, i);
      session alone = m.new_session(exact(sets[i])).value();
      alone.prefill(prompt).value();
      for (std::size_t t = 0; t < next.size(); ++t) {
        if (t == 2 && i == 0) alone.set_adapters(sets[2]).value();
        alone.decode(next[t]).value();
      }
      const std::span<const float> got = b.logits(members[i]);
      CHECK(std::equal(got.begin(), got.end(), alone.logits().begin(), alone.logits().end()));
    }
    // Sessions bring theirs and take them along.
    session alone = m.new_session(exact(sets[1])).value();
    const batch::member joined = b.join(std::move(alone)).value();
    CHECK(b.adapters(joined).size() == 1);
    session back = b.leave(members[2]).value();
    CHECK(back.adapters().size() == 1);
    back.decode(next[0]).value();
  }
}

TEST_CASE("Beginnings are shared by members with equal adapters alone", "[adapter][batch]") {
  const workshop w;
  const model m = open_base(w.path);
  const adapter a = w.open(m, tiny_adapter{every_product});
  const auto prompt = adapter_ids(80);
  const auto steps_for = [&](const adapters& first, const adapters& second) {
    batch b = batch::create(m, exact()).value();
    (void)b.join(prompt, first).value();
    (void)b.join(prompt, second).value();
    std::size_t computed = 0;
    while (b.pending() > 0) computed += b.step().value();
    return computed;
  };
  CHECK(steps_for({{a, 1}}, {{a, 1}}) < 2 * prompt.size());
  CHECK(steps_for({{a, 1}}, {{a, 0.5F}}) == 2 * prompt.size());
  CHECK(steps_for({{a, 1}}, {}) == 2 * prompt.size());
  // What was computed with other adapters is nobody's beginning.
  batch b = batch::create(m, exact()).value();
  const batch::member changed = b.join(prompt, adapters{{a, 1}}).value();
  while (b.pending() > 0) (void)b.step().value();
  b.set_adapters(changed, {}).value();
  (void)b.join(prompt).value();
  std::size_t computed = 0;
  while (b.pending() > 0) computed += b.step().value();
  CHECK(computed == prompt.size());
}

TEST_CASE("Requests name their adapters", "[adapter][batch]") {
  const workshop w;
  const model m = open_base(w.path);
  const adapter a = w.open(m, tiny_adapter{every_product});
  std::vector<generate_request> requests(2);
  for (generate_request& r : requests) {
    r.prompt = adapter_ids(5);
    r.options.max_tokens = 8;
    r.options.sampler = sampler_options::greedy();
    r.options.ignore_eos = true;
  }
  requests[1].adapters = adapters{{a, 2}};
  batch b = batch::create(m, exact()).value();
  const auto made = b.generate(requests).value();
  for (std::size_t i = 0; i < 2; ++i) {
    session s = m.new_session(exact(requests[i].adapters.value_or(adapters{}))).value();
    s.prefill(requests[i].prompt).value();
    CHECK(s.generate(requests[i].options).value().ids == made[i]->ids);
  }
  CHECK(made[0]->ids != made[1]->ids);
}

TEST_CASE("Saved states remember which adapters they were computed with", "[adapter][session_file]") {
  const workshop w;
  const model m = open_base(w.path);
  const adapter a = w.open(m, tiny_adapter{every_product});
  session s = m.new_session(exact({{a, 1}})).value();
  s.prefill(adapter_ids(5)).value();
  const std::vector<std::byte> bytes = s.save().value();
  session same = m.new_session(exact({{w.open(m, tiny_adapter{every_product}), 1}})).value();
  same.restore(bytes).value();
  CHECK(logits_copy(same) == logits_copy(s));
  for (const adapters& other : {adapters{}, adapters{{a, 0.5F}}}) {
    session different = m.new_session(exact(other)).value();
    const auto refused = different.restore(bytes);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == errc::invalid_argument);
    CHECK(different.tokens().empty());
  }
}

TEST_CASE("Running out of memory changes nothing", "[adapter]") {
  const workshop w;
  const model m = open_base(w.path);
  const std::filesystem::path path = w.write({every_product});
  const adapter a = adapter::open(m, path).value();
  session s = m.new_session(exact()).value();
  s.prefill(adapter_ids(4)).value();
  const std::vector<float> before = logits_copy(s);
  for (std::uint64_t count = 0;; count += 7) {
    result<adapter> opened = error{};
    {
      const fail_allocations fail(count);
      opened = adapter::open(m, path);
    }
    if (opened) break;
    CHECK(opened.error().code == errc::out_of_memory);
    REQUIRE(count < 5000);
  }
  const adapters used = {{a, 1}};
  for (std::uint64_t count = 0;; ++count) {
    result<void> set;
    {
      const fail_allocations fail(count);
      set = s.set_adapters(used);
    }
    if (set) break;
    CHECK(set.error().code == errc::out_of_memory);
    CHECK(s.adapters().empty());
    CHECK(logits_copy(s) == before);
    REQUIRE(count < 100);
  }
  s.decode(5).value();
  // More rank than there is room for: the adapter before stays.
  tiny_adapter wide{every_product};
  wide.rank = 40;
  const adapters wider = {{w.open(m, wide), 1}};
  const auto next = [&] {
    session copy = s.fork().value();
    copy.decode(9).value();
    return logits_copy(copy);
  };
  const std::vector<float> expected = next();
  for (std::uint64_t count = 0;; ++count) {
    result<void> set;
    {
      const fail_allocations fail(count);
      set = s.set_adapters(wider);
    }
    if (set) break;
    CHECK(set.error().code == errc::out_of_memory);
    CHECK(s.adapters()[0].adapter.shared() == a.shared());
    CHECK(next() == expected);
    REQUIRE(count < 100);
  }
  CHECK(next() != expected);
}

TEST_CASE("A context that slides is computed again with the adapters of that moment", "[adapter]") {
  const workshop w;
  const model m = open_base(w.path);
  const adapter a = w.open(m, tiny_adapter{every_product});
  session_options options = exact();
  options.n_ctx = 16;
  options.when_full = when_full::slide;
  session s = m.new_session(options).value();
  const auto ids = adapter_ids(17);
  s.prefill(std::span(ids).first(16)).value();
  s.set_adapters(adapters{{a, 1}}).value();
  s.decode(ids[16]).value();
  session fresh = m.new_session(exact({{a, 1}})).value();
  fresh.prefill(s.tokens()).value();
  CHECK(s.tokens().size() < 17);
  CHECK(logits_copy(s) == logits_copy(fresh));
}

TEST_CASE("A batch that is cancelled leaves members and their adapters as they were", "[adapter][batch]") {
  const workshop w;
  const model m = open_base(w.path, 2);
  const adapter a = w.open(m, tiny_adapter{every_product});
  batch b = batch::create(m, exact()).value();
  const auto prompt = adapter_ids(90);
  const batch::member one = b.join(prompt, adapters{{a, 1}}).value();
  std::stop_source stop;
  stop.request_stop();
  CHECK(b.step({{}, stop.get_token()}).error().code == errc::cancelled);
  CHECK(b.pending() == prompt.size());
  while (b.pending() > 0) (void)b.step().value();
  session alone = m.new_session(exact({{a, 1}})).value();
  alone.prefill(prompt).value();
  CHECK(std::ranges::equal(b.logits(one), alone.logits()));
}
