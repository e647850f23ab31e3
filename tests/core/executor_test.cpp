#include "flywheel/core/executor.hpp"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "support/catch.hpp"

#if defined(__linux__)
#  include <sys/mman.h>
#  include <sys/resource.h>
#  include <unistd.h>

#  include <filesystem>
#  include <fstream>
#  include <string>
#endif

using namespace flywheel;

namespace {

#if !defined(FLYWHEEL_SERIAL)
/// A host's pool of the simplest kind: a thread per task.
struct thread_per_task {
  std::atomic<int> calls{0};
  [[nodiscard]] host_pool pool() {
    host_pool p;
    p.user = this;
    p.concurrency = [](void*) { return 3U; };
    p.run = [](void* user, unsigned n, void (*task)(void*, unsigned), void* arg) {
      ++static_cast<thread_per_task*>(user)->calls;
      std::vector<std::thread> threads;
      for (unsigned i = 0; i < n; ++i) threads.emplace_back(task, arg, i);
      for (std::thread& t : threads) t.join();
    };
    p.gang = true;
    return p;
  }
};
#endif

/// A host's pool that runs tasks on the calling thread, last first.
host_pool backwards() {
  host_pool p;
  p.concurrency = [](void*) { return 4U; };
  p.run = [](void*, unsigned n, void (*task)(void*, unsigned), void* arg) {
    while (n-- > 0) task(arg, n);
  };
  return p;
}

struct named_executor {
  const char* name;
  std::shared_ptr<executor> pool;
};

std::vector<named_executor> all_executors() {
  std::vector<named_executor> all{{"serial", serial_executor()},
                                  {"team of 1", make_thread_team(1).value()},
                                  {"team of 2", make_thread_team(2).value()},
                                  {"team of 5", make_thread_team(5).value()},
                                  {"host", make_host_executor(backwards()).value()}};
  if (result<std::shared_ptr<executor>> tbb = make_tbb_executor()) all.push_back({"tbb", *tbb});
  if (result<std::shared_ptr<executor>> tbb = make_tbb_executor(3)) all.push_back({"tbb 3", *tbb});
  return all;
}

/// Runs n bodies and says whether each index came exactly once.
bool each_once(executor& pool, unsigned n) {
  std::vector<std::atomic<int>> seen(n);
  pool.run(n, [&](unsigned i) {
    if (i < n) seen[i].fetch_add(1, std::memory_order_relaxed);
  });
  return std::all_of(seen.begin(), seen.end(), [](const std::atomic<int>& count) { return count.load() == 1; });
}

}  // namespace

TEST_CASE("every executor runs each index once", "[executor]") {
  for (const auto& [name, pool] : all_executors()) {
    CAPTURE(name);
    CHECK(pool->concurrency() >= 1);
    for (const unsigned n : {0U, 1U, 2U, 3U, 4U, 5U, 6U, 17U, 1000U}) {
      CAPTURE(n);
      CHECK(each_once(*pool, n));
    }
  }
}

TEST_CASE("what bodies write is visible to the caller, and the other way round", "[executor]") {
  for (const auto& [name, pool] : all_executors()) {
    CAPTURE(name);
    std::vector<int> plain(64);  // not atomic: a missing ordering is a data race
    int input = 0, wrong = 0;
    for (int round = 1; round <= 200; ++round) {
      input = round;
      pool->run(64, [&](unsigned i) { plain[i] = plain[i] + input; });
      wrong += std::accumulate(plain.begin(), plain.end(), 0) != 64 * round * (round + 1) / 2;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("parallel_for covers every item once and begins at multiples of the grain", "[executor]") {
  for (const auto& [name, pool] : all_executors())
    for (const std::size_t items : {0U, 1U, 7U, 64U, 1000U, 4097U})
      for (const std::size_t grain : {0U, 1U, 3U, 64U, 5000U}) {
        CAPTURE(name, items, grain);
        std::vector<std::atomic<int>> seen(items);
        std::atomic<int> misplaced{0};
        parallel_for(*pool, items, grain, [&](std::size_t begin, std::size_t end) {
          const std::size_t g = std::max<std::size_t>(grain, 1);
          if (begin >= end || end > items || begin % g != 0 || (end != items && end % g != 0)) ++misplaced;
          for (std::size_t i = begin; i < end && i < items; ++i) ++seen[i];
        });
        CHECK(misplaced == 0);
        CHECK(std::all_of(seen.begin(), seen.end(), [](const std::atomic<int>& count) { return count.load() == 1; }));
      }
}

TEST_CASE("parallel_for stands the largest numbers", "[executor]") {
  const auto pool = make_thread_team(3).value();
  const auto most = static_cast<std::size_t>(-1);
  std::atomic<std::size_t> sum{0};
  parallel_for(*pool, most, most / 2, [&](std::size_t begin, std::size_t end) { sum += end - begin; });
  CHECK(sum == most);
  sum = 0;
  parallel_for(*pool, most, most, [&](std::size_t begin, std::size_t end) { sum += end - begin; });
  CHECK(sum == most);
}

TEST_CASE("parallel_for results do not depend on the number of threads", "[executor]") {
  std::vector<double> expected;
  for (const unsigned threads : {1U, 2U, 3U, 7U}) {
    const auto pool = make_thread_team(threads).value();
    std::vector<double> out(1234);
    parallel_for(*pool, out.size(), 5, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) out[i] = 1.0 / (1.0 + static_cast<double>(i));
    });
    if (expected.empty()) expected = out;
    CHECK(out == expected);
  }
}

TEST_CASE("a host's pool needs both functions", "[executor]") {
  CHECK(make_host_executor({}).error().code == errc::invalid_argument);
  host_pool half = backwards();
  half.run = nullptr;
  CHECK(make_host_executor(half).error().code == errc::invalid_argument);
  half = backwards();
  half.concurrency = nullptr;
  CHECK(make_host_executor(half).error().code == errc::invalid_argument);
}

TEST_CASE("a host's pool keeps its promises through the adapter", "[executor]") {
  const auto plain = make_host_executor(backwards()).value();
  CHECK(plain->concurrency() == 4);
  CHECK_FALSE(plain->gang());
  host_pool none = backwards();
  none.concurrency = [](void*) { return 0U; };
  CHECK(make_host_executor(none).value()->concurrency() == 1);
}

TEST_CASE("serial: in order, on the calling thread", "[executor]") {
  const auto pool = serial_executor();
  CHECK(pool->concurrency() == 1);
  CHECK(pool->gang());
  CHECK(pool.get() == serial_executor().get());
  std::vector<unsigned> order;
  pool->run(4, [&](unsigned i) { order.push_back(i); });
  CHECK(order == std::vector<unsigned>{0, 1, 2, 3});
}

TEST_CASE("a function_ref calls what it refers to", "[executor]") {
  int calls = 0;
  auto count = [&](int x) { return calls += x; };
  const function_ref<int(int)> ref = count;
  const function_ref<int(int)> copy = ref;
  CHECK(ref(2) == 2);
  CHECK(copy(3) == 5);
  const std::function<int(int)> wrapped = count;
  CHECK(function_ref<int(int)>(wrapped)(1) == 6);
}

#if defined(FLYWHEEL_SERIAL)

TEST_CASE("a build without threads answers serially", "[executor]") {
  CHECK(make_thread_team(8).value().get() == serial_executor().get());
  CHECK(make_tbb_executor().error().code == errc::unsupported);
  CHECK(usable_cores() == 1);
}

#else

TEST_CASE("a host's pool of threads runs at the same time", "[executor]") {
  thread_per_task host;
  const auto pool = make_host_executor(host.pool()).value();
  CHECK(pool->gang());
  CHECK(pool->concurrency() == 3);
  for (int round = 0; round < 20; ++round) CHECK(each_once(*pool, 3));
  CHECK(host.calls == 20);
}

TEST_CASE("a team has the size that was asked for", "[executor]") {
  CHECK(usable_cores() >= 1);
  CHECK(make_thread_team().value()->concurrency() == usable_cores());
  CHECK(make_thread_team(1).value()->concurrency() == 1);
  for (const unsigned threads : {2U, 3U, 16U}) {
    const auto pool = make_thread_team(threads).value();
    CHECK(pool->concurrency() == threads);
    CHECK(pool->gang());
  }
  CHECK(make_thread_team(max_threads + 1).error().code == errc::invalid_argument);
}

TEST_CASE("a team runs its bodies at the same time, each on a thread of its own", "[executor]") {
  const unsigned threads = 4;
  const auto pool = make_thread_team(threads).value();
  const std::thread::id caller = std::this_thread::get_id();
  for (int round = 0; round < 50; ++round) {
    std::atomic<unsigned> arrived{0};
    std::vector<std::thread::id> ids(threads);
    pool->run(threads, [&](unsigned i) {
      ids[i] = std::this_thread::get_id();
      ++arrived;
      while (arrived.load() < threads) std::this_thread::yield();  // hangs if one body waited for another's end
    });
    CHECK(ids[0] == caller);
    std::sort(ids.begin(), ids.end());
    REQUIRE(std::unique(ids.begin(), ids.end()) == ids.end());
  }
}

TEST_CASE("a team takes calls from several threads at once", "[executor]") {
  for (const unsigned threads : {2U, 3U}) {
    const auto pool = make_thread_team(threads).value();
    std::atomic<int> inside{0}, overlaps{0}, wrong{0};
    std::vector<std::thread> callers;
    for (unsigned c = 0; c < 4; ++c)
      callers.emplace_back([&, c] {
        for (unsigned round = 0; round < 300; ++round) {
          const unsigned n = 2 + (c + round) % 5;
          std::vector<int> plain(n);
          pool->run(n, [&](unsigned i) {
            if (i == 0 && ++inside > 1) ++overlaps;
            plain[i] += static_cast<int>(i) + 1;
            if (i == 0) --inside;
          });
          if (std::accumulate(plain.begin(), plain.end(), 0) != static_cast<int>(n * (n + 1) / 2)) ++wrong;
        }
      });
    for (std::thread& t : callers) t.join();
    CHECK(wrong == 0);
    CHECK(overlaps == 0);  // a gang would not be one
  }
}

TEST_CASE("a team survives pauses of every length", "[executor]") {
  const auto pool = make_thread_team(3).value();
  int wrong = 0;
  for (int round = 0; round < 300; ++round) {
    // From spinning over yielding to sleeping workers, on both sides of a dispatch.
    const auto before = std::chrono::microseconds(round * 37 % 3000);
    const auto within = std::chrono::microseconds(round % 7 == 0 ? round * 53 % 3000 : 0);
    std::this_thread::sleep_for(before);
    std::atomic<int> count{0};
    const unsigned n = 2 + static_cast<unsigned>(round) % 2;
    pool->run(n, [&](unsigned i) {
      if (i + 1 == n) std::this_thread::sleep_for(within);
      ++count;
    });
    wrong += count != static_cast<int>(n);
  }
  CHECK(wrong == 0);
}

TEST_CASE("a nested call runs inline instead of waiting for itself", "[executor]") {
  const auto pool = make_thread_team(3).value();
  std::atomic<int> inner{0};
  pool->run(3, [&](unsigned) { pool->run(4, [&](unsigned) { ++inner; }); });
  CHECK(inner == 12);
  CHECK(each_once(*pool, 3));  // and the team still works
}

TEST_CASE("bodies may use another executor", "[executor]") {
  const auto outer = make_thread_team(2).value();
  const auto inner = make_thread_team(2).value();
  std::atomic<int> count{0};
  outer->run(2, [&](unsigned) { inner->run(2, [&](unsigned) { ++count; }); });
  CHECK(count == 4);
}

TEST_CASE("teams come and go", "[executor]") {
  for (int round = 0; round < 30; ++round) {
    const auto pool = make_thread_team(4).value();
    if (round % 3 != 0) CHECK(each_once(*pool, 4));
  }
}

TEST_CASE("bodies compute with the caller's rounding mode", "[executor]") {
  const auto pool = make_thread_team(3).value();
  const auto thirds = [&] {
    std::vector<float> out(3);
    pool->run(3, [&](unsigned i) {
      volatile float one = 1.0F, three = 3.0F;
      out[i] = one / three;
    });
    CHECK(out[1] == out[0]);
    CHECK(out[2] == out[0]);
    return out[1];
  };
  const float nearest = thirds();
  REQUIRE(std::fesetround(FE_DOWNWARD) == 0);
  const float down = thirds();
  REQUIRE(std::fesetround(FE_TONEAREST) == 0);
  CHECK(down < nearest);
  CHECK(thirds() == nearest);
}

TEST_CASE("tbb", "[executor]") {
  const result<std::shared_ptr<executor>> made = make_tbb_executor(3);
#  if defined(FLYWHEEL_WITH_TBB)
  REQUIRE(made);
  CHECK((*made)->concurrency() <= 3);
  CHECK_FALSE((*made)->gang());
  CHECK(make_tbb_executor(max_threads + 1).error().code == errc::invalid_argument);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 3; ++c)
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) wrong += !each_once(**made, 20);
    });
  for (std::thread& t : callers) t.join();
  CHECK(wrong == 0);
#  else
  CHECK(made.error().code == errc::unsupported);
#  endif
}

#  if defined(__linux__)

namespace {

/// This process's other threads: the state of each, 'R' for running, 'S' for sleeping, by its number.
std::map<std::string, char> other_threads() {
  std::map<std::string, char> states;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    const std::string number = entry.path().filename();
    if (number == std::to_string(::getpid())) continue;
    std::ifstream file(entry.path() / "stat");
    std::string line;
    if (!std::getline(file, line)) continue;  // it has just ended
    states[number] = line[line.rfind(')') + 2];
  }
  return states;
}

/// How many threads there are now that are not among `before`. Those of `before` may end at any time: joined threads
/// stay in the list for a moment.
std::size_t threads_beyond(const std::map<std::string, char>& before) {
  std::size_t n = 0;
  for (const auto& [number, state] : other_threads()) n += before.count(number) == 0;
  return n;
}

bool none_runs() {
  for (const auto& [number, state] : other_threads())
    if (state == 'R') return false;
  return true;
}

/// Waits until it is so; false after a minute.
template <class Condition>
bool eventually(Condition condition) {
  for (int i = 0; i < 6000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

#    if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#    elif defined(__has_feature)
constexpr bool sanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#    else
constexpr bool sanitized = false;
#    endif

}  // namespace

TEST_CASE("an idle team sleeps", "[executor]") {
  const auto before = other_threads();  // oneTBB's or a sanitizer's
  const auto pool = make_thread_team(4).value();
  CHECK(each_once(*pool, 4));
  CHECK(threads_beyond(before) == 3);
  CHECK(eventually(none_runs));
  CHECK(each_once(*pool, 4));  // and wakes up
}

TEST_CASE("a team that cannot be started leaves nothing behind", "[executor]") {
  if (sanitized) return;  // their shadow memory does not get along with a limit of the address space
  const auto before = other_threads();
  std::size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  rlimit old{};
  REQUIRE(::getrlimit(RLIMIT_AS, &old) == 0);
  rlimit tight = old;
  tight.rlim_cur = pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)) + (std::size_t{64} << 20);
  REQUIRE(::setrlimit(RLIMIT_AS, &tight) == 0);
  void* const beyond = ::mmap(nullptr, std::size_t{1} << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (beyond != MAP_FAILED) {
    ::munmap(beyond, std::size_t{1} << 30);
    REQUIRE(::setrlimit(RLIMIT_AS, &old) == 0);
    WARN("skipped: this system (an emulator?) does not keep to limits of the address space");
    return;
  }
  const result<std::shared_ptr<executor>> made = make_thread_team(200);
  REQUIRE(::setrlimit(RLIMIT_AS, &old) == 0);
  REQUIRE_FALSE(made);
  CHECK((made.error().code == errc::io || made.error().code == errc::out_of_memory));
  CHECK_FALSE(made.error().message.empty());
  CHECK(eventually([&] { return threads_beyond(before) == 0; }));
}

#  endif
#endif
