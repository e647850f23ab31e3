// What it costs to hand work to threads and to wait for them: the price of a dispatch per token and a barrier per fused
// operation. Figures mean something on an otherwise idle machine only.
//
//   bench-executor                                    a team of all physical cores
//   FLYWHEEL_BENCH_THREADS=4 bench-executor
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>

#include "flywheel/core/executor.hpp"
#include "flywheel/detail/spin.hpp"
#include "src/measure/roofs.hpp"

namespace {

using namespace flywheel;
using clock_type = std::chrono::steady_clock;

unsigned threads() {
  const char* text = std::getenv("FLYWHEEL_BENCH_THREADS");
  return text ? static_cast<unsigned>(std::atoi(text)) : 0;
}

double seconds_since(clock_type::time_point start) {
  return std::chrono::duration<double>(clock_type::now() - start).count();
}

/// An empty body on every worker, and their return.
void dispatch(benchmark::State& state, const std::shared_ptr<executor>& pool) {
  const unsigned n = pool->concurrency();
  for (auto _ : state) pool->run(n, [](unsigned) {});
  state.counters["threads"] = n;
}

/// The same after the caller worked alone, as it does between tokens; workers have begun to yield or sleep.
void dispatch_after(benchmark::State& state, const std::shared_ptr<executor>& pool, std::chrono::microseconds alone) {
  const unsigned n = pool->concurrency();
  for (auto _ : state) {
    const auto begin = clock_type::now();
    while (clock_type::now() - begin < alone) detail::pause();
    const auto start = clock_type::now();
    pool->run(n, [](unsigned) {});
    state.SetIterationTime(seconds_since(start));
  }
}

void barrier(benchmark::State& state, const std::shared_ptr<executor>& pool) {
  for (auto _ : state) state.SetIterationTime(measure::measure_barrier(*pool));
}

/// A loop over a million numbers in pieces of a thousand.
void loop(benchmark::State& state, const std::shared_ptr<executor>& pool) {
  for (auto _ : state)
    parallel_for(*pool, 1000000, 1000, [](std::size_t begin, std::size_t end) {
      float sum = 0;
      for (std::size_t i = begin; i < end; ++i) sum += static_cast<float>(i);
      benchmark::DoNotOptimize(sum);
    });
}

}  // namespace

int main(int argc, char** argv) {
  using std::chrono::microseconds;
  benchmark::Initialize(&argc, argv);
  const result<std::shared_ptr<executor>> made = make_thread_team(threads());
  if (!made) return 1;
  const std::shared_ptr<executor> team = *made;
  const auto add = [](const char* name, auto body) { return benchmark::RegisterBenchmark(name, body)->UseRealTime(); };
  add("team/dispatch", [=](benchmark::State& s) { dispatch(s, team); });
  for (const int alone : {200, 5000})
    benchmark::RegisterBenchmark(("team/dispatch_after_us:" + std::to_string(alone)).c_str(), [=](benchmark::State& s) {
      dispatch_after(s, team, microseconds(alone));
    })->UseManualTime();
  benchmark::RegisterBenchmark("team/barrier", [=](benchmark::State& s) { barrier(s, team); })->UseManualTime();
  add("team/loop", [=](benchmark::State& s) { loop(s, team); });
  add("serial/loop", [](benchmark::State& s) { loop(s, serial_executor()); });
  if (const result<std::shared_ptr<executor>> tbb = make_tbb_executor()) {
    const std::shared_ptr<executor> arena = *tbb;
    add("tbb/dispatch", [=](benchmark::State& s) { dispatch(s, arena); });
    add("tbb/loop", [=](benchmark::State& s) { loop(s, arena); });
  }
  benchmark::RunSpecifiedBenchmarks();
}
