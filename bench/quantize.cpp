// Quantizing an f16 matrix to every format with an encoder: bytes of input per second, weights as items. On one thread,
// time is processor time, which other programs disturb less; on several it is the clock's.
//
//   bench-quantize --benchmark_filter='Q4_K/search'
//   FLYWHEEL_BENCH_THREADS=2 bench-quantize ...     on so many threads
//   FLYWHEEL_ISA=x86_avx2 bench-quantize ...        with a cluster's kernels
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "flywheel/core/context.hpp"
#include "flywheel/formats/half.hpp"
#include "flywheel/quant/quantize.hpp"

using namespace flywheel;
using quant::rounding;

namespace {

constexpr std::int64_t rows = 1024, cols = 2048;

/// Standard normal numbers (Box and Muller 1958), the same everywhere.
std::vector<std::uint16_t> normal_halves() {
  std::vector<std::uint16_t> out(rows * cols);
  std::uint32_t state = 1;
  const auto uniform = [&] {
    state = state * 1664525u + 1013904223u;
    return (static_cast<float>(state >> 8) + 0.5f) / 16777216.0f;
  };
  for (std::uint16_t& one : out) {
    const float radius = std::sqrt(-2 * std::log(uniform()));
    one = formats::f32_to_f16(radius * std::cos(6.2831853f * uniform()));
  }
  return out;
}

void quantize_matrix(benchmark::State& state, dtype type, rounding method, bool weighted, const context& ctx) {
  static const std::vector<std::uint16_t> halves = normal_halves();
  std::vector<float> importance;
  for (std::int64_t c = 0; weighted && c < cols; ++c) importance.push_back(static_cast<float>(1 + c % 17));
  const tensor_view from(dtype::f16, {rows, cols}, reinterpret_cast<const std::byte*>(halves.data()));
  for (auto _ : state) {
    auto out = quant::quantize(from, {type, method, importance}, ctx);
    if (!out) state.SkipWithError(out.error().to_string().c_str());
    benchmark::DoNotOptimize(out);
  }
  state.SetItemsProcessed(state.iterations() * rows * cols);
  state.SetBytesProcessed(state.iterations() * rows * cols * 2);
}

}  // namespace

int main(int argc, char** argv) {
  const char* threads = std::getenv("FLYWHEEL_BENCH_THREADS");
  context_options options;
  options.threads = threads ? static_cast<unsigned>(std::atoi(threads)) : 1;
  const context ctx = context::create(options).value();
  constexpr std::pair<rounding, const char*> methods[] = {
      {rounding::nearest, "nearest"}, {rounding::search, "search"}, {rounding::greedy, "greedy"}};
  for (const dtype_info& facts : dtype_table) {
    if (!quant::can_quantize(facts.type)) continue;
    for (const auto& [method, name] : methods)
      for (const bool weighted : {false, true}) {
        if (!weighted && quant::wants_importance(facts.type)) continue;
        const std::string title = "quantize/" + std::string(facts.name) + "/" + name + (weighted ? "/importance" : "");
        auto* const added = benchmark::RegisterBenchmark(
            title.c_str(), [type = facts.type, method = method, weighted, &ctx](benchmark::State& state) {
              quantize_matrix(state, type, method, weighted, ctx);
            });
        if (options.threads != 1) added->UseRealTime();
      }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
