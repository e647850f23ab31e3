// What sessions promise, on the real engine: results do not depend, bit for bit, on how tokens were divided into calls
// and chunks, on threads, or on how the cache came to hold what it holds.
#include <algorithm>
#include <thread>

#include "flywheel/model/batch.hpp"
#include "flywheel/model/model.hpp"
#include "model/reference/random_models.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

namespace flywheel {
namespace {

using test::temp_folder;

model open(const std::filesystem::path& path, unsigned threads) {
  context_options options;
  options.threads = threads;
  model_options opening;
  opening.context = context::create(options).value();
  return model::open(path, opening).value();
}

/// Random models of several kinds, and the trained one when it is here; each path opened with one and with three
/// threads.
struct subjects {
  temp_folder folder;
  std::vector<std::pair<std::string, std::filesystem::path>> paths;

  subjects() {
    const auto add = [&](const char* name, auto&& change) {
      test::tiny_model m;
      m.layers = 2;
      m.hidden = 64;
      m.context = 400;
      change(m);
      test::write_tiny_model(folder / name, m);
      paths.emplace_back(name, folder / name);
    };
    add("f32", [](auto&) {});
    add("q8_0", [](auto& m) { m.weights = dtype::q8_0, m.tied = false, m.heads = 2; });
    add("experts", [](auto& m) { m.experts = 4; });
    // Windows and shared keys; recurrent states. The sizes of their heads allow all types of caches or not.
    for (const test::reference::random_model& m :
         {test::reference::random_gemma4(true), test::reference::random_qwen35moe(false)}) {
      m.write(folder / m.name);
      paths.emplace_back(m.name, folder / m.name);
    }
#if FLYWHEEL_SANITIZED
    const std::filesystem::path trained;  // sanitizers find nothing in it that they do not find in small ones
#else
    const std::filesystem::path trained = test::shared_data("family/models/tiny-base/gguf/tiny-base-f16.gguf");
#endif
    if (trained.empty())
      WARN("without the trained model: no shared data, or a sanitizer");
    else
      paths.emplace_back("tiny-base", trained);
  }
};

/// The cache types that fit a model's heads: all of them for some of the models.
std::vector<dtype> kv_types(const model& m) {
  std::vector<dtype> types;
  for (const dtype type : {dtype::f16, dtype::f32, dtype::q8_0, dtype::q4_0}) {
    session_options o;
    o.kv_type = type;
    if (m.new_session(o)) types.push_back(type);
  }
  return types;
}

std::vector<token_id> ids_for(const model& m, std::size_t n, std::uint64_t seed = 1) {
  test::tiny_random random(seed);
  std::vector<token_id> ids(n);
  for (token_id& id : ids) id = 3 + static_cast<token_id>(random.uniform() * static_cast<float>(m.info().n_vocab - 3));
  return ids;
}

std::vector<float> floats(std::span<const float> values) { return {values.begin(), values.end()}; }

session fresh(const model& m, std::int32_t n_batch = 64, dtype kv_type = dtype::f16) {
  session_options o;
  o.n_ctx = 300;
  o.n_batch = n_batch;
  o.kv_type = kv_type;
  return std::move(m.new_session(o)).value();
}

std::vector<float> logits_after(const model& m, std::span<const token_id> ids, dtype kv_type = dtype::f16) {
  session s = fresh(m, 300, kv_type);
  s.prefill(ids).value();
  return floats(s.logits());
}

TEST_CASE("logits do not depend on chunks, calls or threads", "[session_engine]") {
  const subjects all;
  for (const auto& [name, path] : all.paths) {
    INFO(name);
    const model one = open(path, 1);
    const model two = open(path, 2);
    const model three = open(path, 3);
    const std::vector<token_id> ids = ids_for(one, 150);
    const std::vector<dtype> types = kv_types(one);
    CHECK(types.size() == (name == "f32" || name == "experts" ? 2 : 4));
    for (const dtype type : types) {
      const std::vector<float> want = logits_after(one, ids, type);
      for (const model& m : {one, two, three})
        for (const std::int32_t n_batch : {7, 150}) {
          CAPTURE(n_batch);
          session s = fresh(m, n_batch, type);
          REQUIRE(s.prefill(std::span(ids).first(100)));
          REQUIRE(s.prefill(std::span(ids).subspan(100)));
          CHECK(floats(s.logits()) == want);
        }
    }
  }
}

TEST_CASE("scores, rows and decoding agree bit for bit", "[session_engine]") {
  const subjects all;
  for (const auto& [name, path] : all.paths) {
    INFO(name);
    const model m = open(path, 2);
    const std::vector<token_id> ids = ids_for(m, 90);
    session s = fresh(m);
    const std::vector<float> scores = std::move(s.score(ids)).value();
    const std::vector<float> last = floats(s.logits());
    s.clear();
    std::vector<float> from_rows;
    REQUIRE(s.prefill_rows(ids, 1, [&](std::size_t p, std::span<const float> row) -> result<void> {
      if (p + 1 < ids.size()) from_rows.push_back(static_cast<float>(log_probability(row, ids[p + 1])));
      return {};
    }));
    CHECK(from_rows == scores);
    s.clear();
    std::vector<float> from_decode;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      REQUIRE(s.decode(ids[i]));
      if (i + 1 < ids.size()) from_decode.push_back(static_cast<float>(log_probability(s.logits(), ids[i + 1])));
    }
    CHECK(from_decode == scores);
    CHECK(floats(s.logits()) == last);
  }
}

TEST_CASE("truncated, forked, restored and slid sessions go on like fresh ones", "[session_engine]") {
  const subjects all;
  for (const auto& [name, path] : all.paths) {
    INFO(name);
    const model m = open(path, 2);
    const std::vector<token_id> ids = ids_for(m, 140);
    const std::vector<token_id> more = ids_for(m, 20, 2);
    const auto then_more = [&](std::size_t n) {
      std::vector<token_id> joined(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(n));
      joined.insert(joined.end(), more.begin(), more.end());
      return joined;
    };
    for (const dtype type : kv_types(m)) {
      CAPTURE(to_string(type));
      session s = fresh(m, 64, type);
      REQUIRE(s.prefill(ids));
      session fork = std::move(s.fork()).value();
      REQUIRE(fork.truncate(77));
      REQUIRE(fork.prefill(more));
      CHECK(floats(fork.logits()) == logits_after(m, then_more(77), type));
      session restored = fresh(open(path, 1), 64, type);
      REQUIRE(restored.restore(*s.save()));
      CHECK(floats(restored.logits()) == floats(s.logits()));
      REQUIRE(restored.prefill(more));
      REQUIRE(s.prefill(more));
      CHECK(floats(s.logits()) == logits_after(m, then_more(140), type));
      CHECK(floats(restored.logits()) == floats(s.logits()));

      session_options o;
      o.n_ctx = 100;
      o.n_batch = 16;
      o.kv_type = type;
      o.when_full = when_full::slide;
      o.keep = 3;
      session slid = std::move(m.new_session(o)).value();
      REQUIRE(slid.prefill(ids));
      REQUIRE(slid.prefill(more));
      CHECK(slid.tokens().size() < 100);
      CHECK(floats(slid.logits()) == logits_after(m, slid.tokens(), type));
    }
  }
}

TEST_CASE("generation is the same alone, in company and on any number of threads", "[session_engine]") {
  const subjects all;
  for (const auto& [name, path] : all.paths) {
    INFO(name);
    generate_options o;
    o.max_tokens = 30;
    o.ignore_eos = true;
    o.sampler.seed = 3;
    o.sampler.repetition_penalty = 1.1F;
    o.logprobs = true;
    const auto run = [&](const model& m, std::uint64_t prompt) {
      session s = fresh(m);
      s.prefill(ids_for(m, 40, prompt)).value();
      return std::move(s.generate(o)).value();
    };
    const model one = open(path, 1);
    const model two = open(path, 2);
    const std::vector<generation> want = {run(one, 1), run(one, 2), run(one, 3)};
    std::vector<generation> got(3);
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < 3; ++i) threads.emplace_back([&, i] { got[i] = run(two, i + 1); });
    for (std::thread& t : threads) t.join();
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(got[i].ids == want[i].ids);
      CHECK(got[i].logprobs == want[i].logprobs);
      CHECK(got[i].text == want[i].text);
    }
  }
}

TEST_CASE("members of a batch have the results of sessions, on any number of threads", "[session_engine]") {
  const subjects all;
  for (const auto& [name, path] : all.paths) {
    INFO(name);
    const model one = open(path, 1);
    for (const dtype type : kv_types(one)) {
      CAPTURE(to_string(type));
      std::vector<std::vector<token_id>> want;
      const std::vector<token_id> common = ids_for(one, 40);
      for (std::size_t i = 0; i < 9; ++i) {
        want.push_back(i % 2 == 0 ? common : std::vector<token_id>{});
        for (const token_id id : ids_for(one, 1 + 12 * i, 10 + i)) want.back().push_back(id);
      }
      for (const unsigned threads : {1U, 3U}) {
        const model m = open(path, threads);
        session_options o;
        o.n_ctx = 300;
        o.n_batch = threads == 1 ? 37 : 64;
        o.kv_type = type;
        batch b = std::move(batch::create(m, o)).value();
        std::vector<std::vector<token_id>> held = want;
        std::vector<batch::member> members;
        for (const auto& ids : held) {
          members.push_back(*b.join(ids));
          REQUIRE(b.step());
        }
        for (int round = 0; round < 4; ++round) {
          while (b.pending() > 0) REQUIRE(b.step());
          for (std::size_t i = 0; i < members.size(); ++i) {
            if (round % 3 == 0) CHECK(floats(b.logits(members[i])) == logits_after(one, held[i], type));
            held[i].push_back(static_cast<token_id>(5 + i));
            REQUIRE(b.append(members[i], std::span(held[i]).last(1)));
          }
        }
      }
    }
  }
}

TEST_CASE("a cancelled prefill on the real engine leaves no trace", "[session_engine]") {
  const subjects all;
  const model m = open(all.paths.front().second, 2);
  const std::vector<token_id> ids = ids_for(m, 200);
  session s = fresh(m, 16);
  REQUIRE(s.prefill(std::span(ids).first(30)));
  const std::vector<float> before = floats(s.logits());
  std::stop_source stop;
  control c;
  c.stop = stop.get_token();
  c.progress = [&](std::uint64_t, std::uint64_t, std::string_view) { stop.request_stop(); };
  const result<void> r = s.prefill(std::span(ids).subspan(30), c);
  REQUIRE(!r);
  CHECK(r.error().code == errc::cancelled);
  CHECK(s.tokens().size() == 30);
  CHECK(floats(s.logits()) == before);
  REQUIRE(s.prefill(std::span(ids).subspan(30)));
  CHECK(floats(s.logits()) == logits_after(m, ids));
}

}  // namespace
}  // namespace flywheel
