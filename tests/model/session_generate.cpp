// Generation: the loop, its ends, its callback and its range.
#include <algorithm>
#include <cmath>
#include <limits>
#include <ranges>

#include "fake_engine.hpp"
#include "flywheel/model/session.hpp"
#include "support/catch.hpp"
#include "support/failing_new.hpp"

namespace flywheel {
namespace {

using test::copy;
using test::fake_model;
using test::fake_shape;
using test::logits_after;
using test::snapshot;
using test::some_ids;

static_assert(std::ranges::input_range<generation_stream>);

session_options window(std::int32_t n_ctx, when_full full = when_full::refuse, std::int32_t keep = 0) {
  session_options o;
  o.n_ctx = n_ctx;
  o.n_batch = 16;
  o.when_full = full;
  o.keep = keep;
  return o;
}

generate_options greedy(std::int32_t max_tokens) {
  generate_options o;
  o.max_tokens = max_tokens;
  o.sampler = sampler_options::greedy();
  o.ignore_eos = true;
  return o;
}

/// Makes the model say `ids` one after the other, whatever its logits are.
logit_hook dictate(std::vector<token_id> ids, std::size_t from) {
  return [ids = std::move(ids), from](std::span<const token_id> tokens, std::span<float> logits) -> result<void> {
    const std::size_t at = tokens.size() - from;
    if (at >= ids.size()) return error{errc::internal, "asked for more than was dictated", {}};
    std::fill(logits.begin(), logits.end(), -std::numeric_limits<float>::infinity());
    logits[static_cast<std::size_t>(ids[at])] = 0;
    return {};
  };
}

/// Greedy, not stopping at end tokens.
std::vector<token_id> ids_of(session& s, std::int32_t n) { return std::move(s.generate(greedy(n))).value().ids; }

session started(const fake_model& m, std::size_t n, session_options o = window(200)) {
  session s = m.open(o);
  s.prefill(some_ids(n)).value();
  return s;
}

TEST_CASE("generation is sampling and decoding in turn", "[generate]") {
  const fake_model m;
  generate_options o = greedy(40);
  o.sampler = {};
  o.sampler.seed = 5;
  o.sampler.repetition_penalty = 1.2F;
  o.sampler.penalty_window = 20;
  o.logprobs = true;
  o.top_logprobs = 3;
  // The same by hand.
  std::vector<token_id> tokens = some_ids(30);
  sampler chooser = std::move(sampler::create(o.sampler)).value();
  for (const token_id id : tokens) REQUIRE(chooser.accept(id));
  generation want;
  for (int i = 0; i < 40; ++i) {
    const std::vector<float> logits = logits_after(m, tokens);
    const token_id id = *chooser.choose(logits);
    REQUIRE(chooser.accept(id));
    want.ids.push_back(id);
    want.logprobs.push_back(static_cast<float>(log_probability(logits, id)));
    const std::vector<token_probability> top = std::move(top_probabilities(logits, 3)).value();
    want.top.insert(want.top.end(), top.begin(), top.end());
    tokens.push_back(id);
  }
  text::decoder decoder(m.handle.tokenizer(), {.render_special = false}, true);
  for (const token_id id : want.ids) want.text += *decoder.push(id);
  want.text += decoder.flush();

  session s = started(m, 30);
  generation given;
  std::string text;
  const result<generation> made = s.generate(o, [&](const generation_step& step) {
    text += step.text;
    if (step.id < 0) return true;
    given.ids.push_back(step.id);
    given.logprobs.push_back(step.logprob);
    given.top.insert(given.top.end(), step.top.begin(), step.top.end());
    return true;
  });
  REQUIRE(made);
  CHECK(made->reason == stop_reason::length);
  CHECK(made->end_token == -1);
  const auto same = [&](const generation& g) {
    const auto id = [](const token_probability& t) { return std::pair(t.id, t.logprob); };
    return g.ids == want.ids && g.logprobs == want.logprobs && std::ranges::equal(g.top, want.top, {}, id, id);
  };
  CHECK(same(*made));
  CHECK(same(given));
  CHECK(made->text == want.text);
  CHECK(text == want.text);
  CHECK(copy(s.tokens()) == tokens);
  CHECK(s.logits().empty());  // the last token is left to the next call
  REQUIRE(s.compute());
  CHECK(copy(s.logits()) == logits_after(m, tokens));

  // In two halves, the sampler's state apart: greedy.
  session whole = started(m, 30);
  session halves = started(m, 30);
  const std::vector<token_id> all = ids_of(whole, 20);
  std::vector<token_id> joined = ids_of(halves, 7);
  for (const token_id id : ids_of(halves, 13)) joined.push_back(id);
  CHECK(joined == all);
  // Without what was not asked for.
  CHECK(started(m, 30).generate(greedy(5))->logprobs.empty());
  CHECK(started(m, 30).generate(greedy(5))->top.empty());
}

TEST_CASE("generating computes each token once and leaves the last one out", "[generate]") {
  const fake_model m;
  session s = started(m, 10);
  const std::int64_t before = m.engine->tokens_computed;
  REQUIRE(s.generate(greedy(8)));
  CHECK(m.engine->tokens_computed - before == 7);
  REQUIRE(s.generate(greedy(0)));
  CHECK(m.engine->tokens_computed - before == 7);
  REQUIRE(s.generate(greedy(1)));
  CHECK(m.engine->tokens_computed - before == 8);
  // After a truncation the logits are made again.
  REQUIRE(s.truncate(5));
  REQUIRE(s.generate(greedy(1)));
  CHECK(m.engine->tokens_computed - before == 9);
}

TEST_CASE("an end token ends the generation and is not part of it", "[generate]") {
  const fake_model m;
  session s = started(m, 10);
  generate_options o = greedy(50);
  o.ignore_eos = false;
  o.adjust = dictate({300, 301, 2, 302, 303}, 10);
  generation g = std::move(s.generate(o)).value();
  CHECK(g.reason == stop_reason::end_of_text);
  CHECK(g.end_token == 2);
  CHECK(g.ids == std::vector<token_id>{300, 301});
  CHECK(s.tokens().size() == 12);
  // The end token may be chosen again: nothing was lost.
  g = std::move(s.generate(o)).value();
  CHECK((g.ids.empty() && g.end_token == 2));
  // Ignored, it is a token like others, but without text.
  session t = started(m, 10);
  o.ignore_eos = true;
  o.max_tokens = 5;
  g = std::move(t.generate(o)).value();
  CHECK(g.ids == std::vector<token_id>{300, 301, 2, 302, 303});
  CHECK(g.text.find("</s>") == std::string::npos);
  session u = started(m, 10);
  o.render_special = true;
  CHECK(u.generate(o)->text.find("</s>") != std::string::npos);
}

TEST_CASE("stop texts end the text and do not leak to the callback", "[generate]") {
  const fake_model m;
  const text::tokenizer& vocabulary = m.handle.tokenizer();
  std::vector<token_id> ids;
  std::vector<std::string> pieces = {"h", "e", "l", "l", "o", "t", "h", "e"};
  for (const std::string& p : pieces) ids.push_back(vocabulary.find(p));
  const auto run = [&](std::vector<std::string> stops, std::string& streamed, std::vector<std::string>& parts) {
    session s = started(m, 10);
    generate_options o = greedy(static_cast<std::int32_t>(ids.size()));
    o.adjust = dictate(ids, 10);
    o.stop_texts = std::move(stops);
    generation g = std::move(s.generate(o, [&](const generation_step& step) {
                     streamed += step.text;
                     parts.emplace_back(step.text);
                     return true;
                   })).value();
    // Tokens and session agree, whatever the text is.
    CHECK(copy(s.tokens().subspan(10)) == g.ids);
    CHECK(streamed == g.text);
    return g;
  };
  {
    std::string text;
    std::vector<std::string> parts;
    const generation g = run({"lot", "xyz"}, text, parts);
    CHECK(g.reason == stop_reason::stop_text);
    CHECK(g.text == "hel");
    CHECK(g.ids.size() == 6);
    // "l" might have begun "lot" twice, and is given when it is certain.
    CHECK(parts == std::vector<std::string>{"h", "e", "", "l", "", ""});
  }
  {
    std::string text;
    std::vector<std::string> parts;
    const generation g = run({"then"}, text, parts);
    CHECK(g.reason == stop_reason::length);
    CHECK(g.text == "hellothe");
    CHECK(parts.back() == "the");  // held back until the end, given by a step without token
    CHECK(parts.size() == 9);
  }
  {
    std::string text;
    std::vector<std::string> parts;
    const generation g = run({"h"}, text, parts);
    CHECK(g.text.empty());
    CHECK(g.ids.size() == 1);
  }
}

TEST_CASE("text comes in whole UTF-8 sequences", "[generate]") {
  const fake_model m;
  // U+20AC as byte tokens, then one that stays incomplete.
  const std::vector<token_id> ids = {3 + 0xE2, 3 + 0x82, 3 + 0xAC, 260, 3 + 0xE2};
  session s = started(m, 10);
  generate_options o = greedy(5);
  o.adjust = dictate(ids, 10);
  std::vector<std::string> parts;
  const generation g = std::move(s.generate(o, [&](const generation_step& step) {
                         parts.emplace_back(step.text);
                         return true;
                       })).value();
  const std::string plain(m.handle.tokenizer().piece(260));
  REQUIRE(plain.size() == 1);
  CHECK(parts == std::vector<std::string>{"", "", "\xE2\x82\xAC", plain, "", "\xEF\xBF\xBD"});
  CHECK(g.text == "\xE2\x82\xAC" + plain + "\xEF\xBF\xBD");
}

TEST_CASE("a leading space belongs to the text unless the text begins here", "[generate]") {
  const fake_model m;
  const token_id the = m.handle.tokenizer().find("\xE2\x96\x81the");
  REQUIRE(the > 0);
  for (const auto& [prompt, want] : {std::pair{std::vector<token_id>{1}, std::string("the")}, {{1, 300}, " the"}}) {
    session s = m.open(window(100));
    REQUIRE(s.prefill(prompt));
    generate_options o = greedy(1);
    o.adjust = dictate({the}, prompt.size());
    CHECK(s.generate(o)->text == want);
  }
}

TEST_CASE("the callback can stop, and so can cancellation", "[generate]") {
  fake_model m;
  session s = started(m, 10);
  int calls = 0;
  generation g = std::move(s.generate(greedy(50), [&](const generation_step&) { return ++calls < 7; })).value();
  CHECK(g.reason == stop_reason::callback);
  CHECK(g.ids.size() == 7);
  CHECK(calls == 7);
  CHECK(s.tokens().size() == 17);

  std::stop_source stop;
  generate_options o = greedy(50);
  o.control.stop = stop.get_token();
  g = std::move(s.generate(o, [&](const generation_step& step) {
        if (s.tokens().size() == 22) stop.request_stop();
        return step.id >= -1;
      })).value();
  CHECK(g.reason == stop_reason::cancelled);
  CHECK(g.ids.size() == 5);
  CHECK(s.tokens().size() == 22);

  // In the middle of a forward pass.
  stop = std::stop_source();
  o.control.stop = stop.get_token();
  m.engine->before_layer = [&](std::int32_t layer, const detail::chunk& c) -> result<void> {
    if (layer == 1 && c.parts[0].cache->size() == 25) stop.request_stop();
    return {};
  };
  const std::vector<token_id> before = copy(s.tokens());
  g = std::move(s.generate(o)).value();
  m.engine->before_layer = nullptr;
  CHECK(g.reason == stop_reason::cancelled);
  CHECK(g.ids.size() == 4);
  // What follows is what would have followed.
  const std::vector<token_id> rest = s.generate(greedy(10))->ids;
  session t = m.open(window(200));
  REQUIRE(t.prefill(before));
  std::vector<token_id> want = t.generate(greedy(14))->ids;
  CHECK(std::equal(want.begin() + 4, want.end(), rest.begin(), rest.end()));

  // Cancelled before it begins: not even the prompt's end is computed.
  REQUIRE(s.truncate(12));
  g = std::move(s.generate(o)).value();
  CHECK((g.reason == stop_reason::cancelled && g.ids.empty()));
}

TEST_CASE("a full context ends the generation or slides", "[generate]") {
  const fake_model m;
  session s = started(m, 60, window(64));
  generation g = std::move(s.generate(greedy(50))).value();
  CHECK(g.reason == stop_reason::context_full);
  CHECK(g.ids.size() == 4);
  CHECK(s.tokens().size() == 64);
  CHECK(s.generate(greedy(50))->ids.empty());

  for (const std::int32_t keep : {0, 5}) {
    session slide = started(m, 60, window(64, when_full::slide, keep));
    generate_options o = greedy(-1);
    o.max_tokens = 200;
    g = std::move(slide.generate(o)).value();
    CHECK(g.reason == stop_reason::length);
    // By hand.
    std::vector<token_id> tokens = some_ids(60);
    for (const token_id id : g.ids) {
      const std::vector<float> logits = logits_after(m, tokens);
      REQUIRE(id == std::max_element(logits.begin(), logits.end()) - logits.begin());
      if (tokens.size() == 64) tokens.erase(tokens.begin() + keep, tokens.begin() + keep + (64 - keep) / 2);
      tokens.push_back(id);
    }
    CHECK(copy(slide.tokens()) == tokens);
  }
}

TEST_CASE("errors during generation put the session back", "[generate]") {
  fake_model m;
  for (const when_full full : {when_full::refuse, when_full::slide}) {
    session s = started(m, 40, window(48, full, 3));
    const snapshot before(s);
    const std::int32_t n = full == when_full::slide ? 60 : 7;
    generate_options o = greedy(n + 20);
    const auto fails = [&](const result<generation>& r, errc code) {
      return !r && r.error().code == code && snapshot(s) == before;
    };
    o.adjust = [&, count = 0](auto, std::span<float>) mutable -> result<void> {
      if (++count == n) return error{errc::io, "no grammar", {}};
      return {};
    };
    CHECK(fails(s.generate(o), errc::io));
    o.adjust = [&, count = 0](auto, std::span<float> logits) mutable -> result<void> {
      if (++count == n) std::fill(logits.begin(), logits.end(), std::nanf(""));
      return {};
    };
    CHECK(fails(s.generate(o), errc::invalid_argument));
    o.adjust = nullptr;
    int calls = 0;
    CHECK(fails(s.generate(o,
                           [&](const generation_step&) -> bool {
                             if (++calls == n) throw std::runtime_error("no");
                             return true;
                           }),
                errc::internal));
    calls = 0;
    m.engine->before_layer = [&](std::int32_t, const detail::chunk&) -> result<void> {
      if (++calls == 2 * n - 3) return error{errc::device, "lost", {}};
      return {};
    };
    CHECK(fails(s.generate(o), errc::device));
    m.engine->before_layer = nullptr;
    // And it still says what it should.
    session fresh = m.open(window(48, full, 3));
    REQUIRE(fresh.prefill(some_ids(40)));
    CHECK(s.generate(greedy(60))->ids == fresh.generate(greedy(60))->ids);
  }
}

TEST_CASE("wrong options are refused", "[generate]") {
  const fake_model m;
  session s = started(m, 10);
  const snapshot before(s);
  const auto refused = [&](auto&& change) {
    generate_options o = greedy(5);
    change(o);
    const result<generation> r = s.generate(o);
    generation_stream stream = s.stream(o);
    CHECK(stream.begin() == stream.end());
    CHECK(stream.step().id == -1);
    CHECK(stream.generated().ids.empty());
    return !r && r.error().code == errc::invalid_argument && !stream.status() &&
           stream.status().has_value() == r.has_value() && snapshot(s) == before;
  };
  CHECK(refused([](auto& o) { o.max_tokens = -2; }));
  CHECK(refused([](auto& o) { o.top_logprobs = -1; }));
  CHECK(refused([](auto& o) { o.top_logprobs = 321; }));
  CHECK(refused([](auto& o) { o.stop_texts = {"a", ""}; }));
  CHECK(refused([](auto& o) { o.stop_texts = {"\x82\xAC"}; }));
  CHECK(refused([](auto& o) { o.sampler.temperature = -1; }));
  CHECK(refused([](auto& o) { o.sampler.logit_bias = {{320, 1.0F}}; }));
  session empty = m.open(window(10));
  CHECK(empty.generate(greedy(1)).error().code == errc::invalid_argument);

  fake_shape shape;
  shape.vocabulary = false;
  const fake_model mute(shape);
  session t = started(mute, 10);
  generate_options o = greedy(5);
  o.stop_texts = {"x"};
  CHECK(t.generate(o).error().code == errc::invalid_argument);
  o.stop_texts.clear();
  o.ignore_eos = false;
  const generation g = std::move(t.generate(o)).value();
  CHECK(g.ids.size() == 5);
  CHECK(g.text.empty());
}

TEST_CASE("tokens beyond the vocabulary have no text", "[generate]") {
  fake_shape shape;
  shape.n_vocab = 400;  // the vocabulary has 320
  const fake_model m(shape);
  session s = started(m, 10);
  generate_options o = greedy(3);
  o.adjust = dictate({300, 399, 301}, 10);
  const generation g = std::move(s.generate(o)).value();
  CHECK(g.ids == std::vector<token_id>{300, 399, 301});
  text::decoder decoder(m.handle.tokenizer(), {}, true);
  CHECK(g.text == *decoder.push(300) + *decoder.push(301));
}

TEST_CASE("the range gives what the callback gives", "[generate]") {
  const fake_model m;
  generate_options o = greedy(30);
  o.logprobs = true;
  o.stop_texts = {"th"};
  session a = started(m, 20);
  session b = started(m, 20);
  std::vector<std::pair<token_id, std::string>> want;
  const generation g = std::move(a.generate(o, [&](const generation_step& step) {
                         want.emplace_back(step.id, step.text);
                         return true;
                       })).value();
  std::vector<std::pair<token_id, std::string>> got;
  generation_stream stream = b.stream(o);
  for (const auto& step : stream) {
    got.emplace_back(step.id, step.text);
    CHECK(stream.generated().reason == stop_reason::length);
    if (step.id >= 0) CHECK(b.tokens().back() == step.id);
  }
  REQUIRE(stream.status());
  CHECK(got == want);
  CHECK(stream.generated().ids == g.ids);
  CHECK(stream.generated().text == g.text);
  CHECK(stream.generated().logprobs == g.logprobs);
  CHECK(stream.generated().reason == g.reason);
  CHECK_FALSE(stream.next());

  // Left early, and continued by another; the session may be moved meanwhile.
  session c = started(m, 20);
  generation_stream early = c.stream(greedy(30));
  session moved = std::move(c);
  generation_stream same = std::move(early);
  int n = 0;
  for (auto it = same.begin(); it != same.end() && ++n < 5; ++it) CHECK(it->id >= 0);
  CHECK(moved.tokens().size() == 25);
  std::vector<token_id> ids = same.generated().ids;
  for (const token_id id : ids_of(moved, 25)) ids.push_back(id);
  CHECK(ids == started(m, 20).generate(greedy(30))->ids);
  // With the standard's algorithms.
  session d = started(m, 20);
  generation_stream range = d.stream(greedy(30));
  std::vector<token_id> by_ranges;
  for (const token_id id : range | std::views::transform(&generation_step::id) | std::views::take(30))
    by_ranges.push_back(id);
  CHECK(by_ranges == ids);
}

TEST_CASE("a failed step of a range keeps the steps before", "[generate]") {
  fake_model m;
  session s = started(m, 20);
  m.engine->before_layer = [](std::int32_t, const detail::chunk& c) -> result<void> {
    if (c.parts[0].cache->size() == 24) return error{errc::device, "lost", {}};
    return {};
  };
  generation_stream stream = s.stream(greedy(30));
  int n = 0;
  for (const auto& step : stream) n += step.id >= 0;
  REQUIRE(!stream.status());
  CHECK(n == 5);
  CHECK(s.tokens().size() == 25);
  CHECK(stream.generated().ids == copy(s.tokens().subspan(20)));
  m.engine->before_layer = nullptr;
  CHECK_FALSE(stream.next());
  CHECK(s.generate(greedy(3))->ids.size() == 3);
}

TEST_CASE("progress counts tokens", "[generate]") {
  const fake_model m;
  session s = started(m, 20);
  generate_options o = greedy(12);
  std::uint64_t last = 0;
  o.control.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view what) {
    CHECK(total == 12);
    CHECK(what == "generate");
    last = done;
  };
  REQUIRE(s.generate(o));
  CHECK(last == 12);
}

TEST_CASE("decoding allocates pages and nothing else", "[generate]") {
  const fake_model m;
  session s = started(m, 10, window(2000));
  sampler_options sampling;
  sampling.repetition_penalty = 1.1F;
  generate_options o;
  o.sampler = sampling;
  o.max_tokens = 700;
  o.ignore_eos = true;
  generation_stream stream = s.stream(o);
  std::uint64_t last = 0;
  int tokens = 0, allocating = 0;
  for (const auto& step : stream) {
    const std::uint64_t now = test::allocation_count();
    tokens += step.id >= 0;
    allocating += tokens > 200 && now != last;
    last = test::allocation_count();
  }
  CHECK(tokens == 700);
  // A page every 64 tokens, and now and then a list that doubles.
  CHECK(allocating < 8 + 8);
}

}  // namespace
}  // namespace flywheel
