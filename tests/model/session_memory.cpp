// Running out of memory anywhere is an error that changes nothing.
#include <functional>

#include "fake_engine.hpp"
#include "flywheel/model/session.hpp"
#include "support/catch.hpp"
#include "support/failing_new.hpp"
#include "support/temp_folder.hpp"

namespace flywheel {
namespace {

using test::copy;
using test::fail_allocations;
using test::fake_model;
using test::snapshot;
using test::some_ids;

struct operation {
  const char* name;
  std::function<result<void>(session&)> run;
};

template <class T>
result<void> outcome(result<T> r) {
  if (r) return {};
  return std::move(r).error();
}

std::vector<operation> operations(const std::filesystem::path& file, const std::vector<std::byte>& saved) {
  const std::vector<token_id> ids = some_ids(150, 3);
  generate_options options;
  options.max_tokens = 70;
  options.ignore_eos = true;
  options.stop_texts = {"never to be seen"};
  options.logprobs = true;
  options.top_logprobs = 2;
  options.sampler.repetition_penalty = 1.1F;
  options.sampler.top_k = 0;
  options.sampler.typical_p = 0.9F;
  return {
      {"prefill", [ids](session& s) { return s.prefill(ids); }},
      {"prefill text", [](session& s) { return s.prefill("hello the world, this is longer than a short string"); }},
      {"decode", [](session& s) { return s.decode(5); }},
      {"score", [ids](session& s) { return outcome(s.score(ids)); }},
      {"rows", [ids](session& s) { return s.prefill_rows(ids, 3, [](auto, auto) -> result<void> { return {}; }); }},
      {"generate", [options](session& s) { return outcome(s.generate(options)); }},
      {"fork", [](session& s) { return outcome(s.fork()); }},
      {"save", [](session& s) { return outcome(s.save()); }},
      {"save to a file", [file](session& s) { return s.save(file); }},
      {"restore", [&saved](session& s) { return s.restore(saved); }},
      {"restore from a file", [file](session& s) { return s.restore(file); }},
  };
}

/// A session of 100 tokens whose last page is shared.
struct subject {
  session main;
  session other;
};
subject prepare(const fake_model& m, bool slide) {
  session_options o;
  o.n_ctx = slide ? 120 : 300;
  o.n_batch = 32;
  if (slide) o.when_full = when_full::slide;
  session s = m.open(o);
  s.prefill(some_ids(100)).value();
  session fork = std::move(s.fork()).value();
  return {std::move(s), std::move(fork)};
}

void check_failed(const result<void>& r, const session& s, const snapshot& before) {
  CHECK(r.error().code == errc::out_of_memory);
  CHECK(snapshot(s) == before);
}

/// The session works as if nothing had happened.
void check_alive(session& s, const fake_model& m) {
  const std::vector<token_id> held = copy(s.tokens());
  if (held.empty()) return;
  if (s.logits().empty()) REQUIRE(s.compute());
  CHECK(copy(s.logits()) == test::logits_after(m, held));
}

TEST_CASE("a failing operator new is an error that changes nothing", "[session_memory]") {
  test::fake_shape shape;
  shape.kv = GENERATE(test::alike(2, 2, 8), test::mixed_layers());
  const fake_model m(shape);
  const test::temp_folder folder;
  std::vector<std::byte> saved;
  {
    session s = m.open();
    REQUIRE(s.prefill(some_ids(110, 8)));
    saved = std::move(s.save()).value();
    REQUIRE(s.save(folder / "state"));
  }
  for (const operation& op : operations(folder / "state", saved))
    for (const bool slide : {false, true})
      for (const bool once : {false, true}) {
        INFO(op.name << (slide ? ", sliding" : "") << (once ? ", once" : ""));
        const bool refused = slide && (op.name == std::string_view("score") || op.name == std::string_view("rows"));
        if (refused) continue;
        std::uint64_t failures = 0;
        for (std::uint64_t n = 0;; ++n) {
          subject s = prepare(m, slide);
          const snapshot before(s.main);
          bool failed = false;
          result<void> r;
          {
            const fail_allocations guard(n, once);
            r = op.run(s.main);
            failed = guard.failed();
          }
          if (!failed) {
            REQUIRE(r);
            break;
          }
          ++failures;
          if (r) continue;  // it could do without (a library's own fallback)
          check_failed(r, s.main, before);
          if (n % 5 == 0) check_alive(s.main, m);
          if (n % 5 == 1) check_alive(s.other, m);
        }
        CAPTURE(failures);
        CHECK(failures > 0);
        // No half-written file is left.
        CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
      }
}

TEST_CASE("a failing memory resource is an error that changes nothing", "[session_memory]") {
  const auto memory = std::make_shared<test::failing_resource>();
  {
    const fake_model m({}, memory);
    const test::temp_folder folder;
    std::vector<std::byte> saved;
    {
      session s = m.open();
      REQUIRE(s.prefill(some_ids(110, 8)));
      saved = std::move(s.save()).value();
      REQUIRE(s.save(folder / "state"));
    }
    for (const operation& op : operations(folder / "state", saved))
      for (const bool slide : {false, true}) {
        INFO(op.name << (slide ? ", sliding" : ""));
        if (slide && op.name != std::string_view("prefill") && op.name != std::string_view("generate")) continue;
        for (std::int64_t n = 0;; ++n) {
          subject s = prepare(m, slide);
          const snapshot before(s.main);
          memory->allocations_left = n;
          const result<void> r = op.run(s.main);
          memory->allocations_left = -1;
          if (r) break;
          check_failed(r, s.main, before);
          check_alive(s.main, m);
        }
      }
    // Making a session fails cleanly, too.
    for (std::int64_t n = 0;; ++n) {
      memory->allocations_left = n;
      const result<session> s = m.handle.new_session();
      memory->allocations_left = -1;
      if (s) break;
      CHECK(s.error().code == errc::out_of_memory);
    }
    for (std::uint64_t n = 0;; ++n) {
      const fail_allocations guard(n);
      const result<session> s = m.handle.new_session();
      if (s) break;
      if (s.error().code != errc::out_of_memory) FAIL("another error: " << s.error().message);
    }
  }
  CHECK(memory->live_bytes == 0);
  CHECK(memory->allocations > 50);
}

}  // namespace
}  // namespace flywheel
