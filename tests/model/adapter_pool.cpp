// adapter_pool: names, limits, threads.
#include <atomic>
#include <thread>

#include "model/adapter_workshop.hpp"

using namespace flywheel;
using namespace flywheel::test;

TEST_CASE("A pool keeps what was used last", "[adapter][adapter_pool]") {
  const workshop w;
  const model m = open_base(w.path);
  const std::size_t each = w.open(m, {every_product}).info().bytes;
  adapter_pool_options options;
  options.max_bytes = 2 * each + each / 2;
  adapter_pool pool = adapter_pool::create(m, options).value();
  for (int i = 0; i < 2000; ++i) {
    const std::string name = std::to_string(i);
    pool.add(name, i < 4 ? w.write({every_product}, name) : w.folder.path() / "missing.gguf").value();
  }
  CHECK(pool.size() == 2000);
  CHECK(pool.resident() == 0);
  CHECK(pool.add("0", w.path).error().code == errc::invalid_argument);
  CHECK(pool.add("", w.path).error().code == errc::invalid_argument);
  const adapter first = pool.get("0").value();
  (void)pool.get("1").value();
  CHECK(pool.get("0").value().shared() == first.shared());
  (void)pool.get("2").value();  // 1 goes
  CHECK(pool.resident() == 2);
  CHECK(pool.resident_bytes() == 2 * each);
  CHECK(pool.get("0").value().shared() == first.shared());
  CHECK(pool.get("7").error().code == errc::not_found);
  CHECK(pool.get("nobody").error().code == errc::not_found);
  pool.remove("0").value();
  CHECK(pool.resident() == 1);
  CHECK(pool.get("0").error().code == errc::not_found);
  CHECK(pool.remove("0").error().code == errc::not_found);
  CHECK(m.new_session(exact({{first, 1}})));  // a handle outlives its name
  adapter_pool small = adapter_pool::create(m, {each - 1}).value();
  small.add("a", w.folder.path() / "1.gguf").value();
  CHECK(small.get("a").error().code == errc::out_of_memory);
  CHECK(small.resident() == 0);
}

TEST_CASE("Threads share a pool", "[adapter][adapter_pool]") {
  const workshop w;
  const model m = open_base(w.path);
  const std::size_t each = w.open(m, {every_product}).info().bytes;
  const adapter_pool pool = [&] {
    adapter_pool made = adapter_pool::create(m, {2 * each}).value();
    for (const char* name : {"a", "b", "c"}) made.add(name, w.write({every_product}, name)).value();
    return made;
  }();
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        const auto got = pool.get(std::string(1, static_cast<char>('a' + (t + i) % 3)));
        if (!got || got->info().bytes != each) ++failures;
      }
    });
  for (std::thread& t : threads) t.join();
  CHECK(failures == 0);
  CHECK(pool.resident_bytes() <= 2 * each);
}
