// Every line of every kernels.inc that this CPU can run: GOP/s, GB/s, and percent of the roofs. The roofs (int8 dot
// product, f32 fused multiply-add, reading memory) are measured in bursts just before and after each benchmark, so that
// a busy machine slows both. Products rotate over more weights than caches hold. On one thread, time is processor time;
// on several it is the clock's.
//
//   bench-kernels --benchmark_filter='matmul/.*q4_0.*avx512'
//   bench-kernels --benchmark_filter=gemm/ --benchmark_repetitions=5 --benchmark_enable_random_interleaving=true
//                                                             one product with and without peers (FLYWHEEL_BENCH_PEERS)
//   FLYWHEEL_BENCH_THREADS=2 bench-kernels ...                matmul/ on so many threads
//   FLYWHEEL_BENCH_PREFETCH=0 bench-kernels ...               another prefetch distance than the default
//   FLYWHEEL_BENCH_MIB=256 bench-kernels ...                  rotate over fewer weights
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/isa.hpp"
#include "flywheel/formats/formats.hpp"
#include "kernels/registry.hpp"
#include "src/measure/machine.hpp"
#include "src/measure/matmul.hpp"
#include "src/measure/roofs.hpp"
#if defined(FLYWHEEL_BENCH_PEERS)
#  include "bench/peers/peers.hpp"
#endif

using namespace flywheel;
using kernels::kernel_set;
using kernels::matmul_kernel;

namespace {

std::size_t number_from(const char* variable, std::size_t otherwise) {
  const char* text = std::getenv(variable);
  return text ? static_cast<std::size_t>(std::atol(text)) : otherwise;
}

/// Threads and memory of all benchmarks; the workload of the last product stays for the next number of rows.
struct {
  std::shared_ptr<executor> team;
  buffer area;
  std::optional<measure::matmul_workload> work;
  const matmul_kernel* kernel = nullptr;
  std::int64_t n = 0, k = 0;

  executor& threads(unsigned count) {
    if (team && team->concurrency() == count) return *team;
    work.reset();
    team = make_thread_team(count).value();
    return *team;
  }
  std::span<std::byte> memory() {
    if (area.size() == 0) area = measure::make_area(*team, number_from("FLYWHEEL_BENCH_MIB", 0) << 20).value();
    return area.mutable_bytes();
  }
  measure::matmul_workload& product(const matmul_kernel& wanted, std::int64_t rows, std::int64_t cols) {
    constexpr std::int64_t most_rows = 512;
    if (!work || kernel != &wanted || n != rows || k != cols) {
      work = measure::matmul_workload::create(wanted, rows, cols, most_rows, memory(), *team).value();
      kernel = &wanted, n = rows, k = cols;
    }
    return *work;
  }
} machine;

/// Measures the roofs while it exists, and reports what was reached.
class against_roofs {
 public:
  against_roofs(executor& pool, kernels::cluster isa)
      : clock_(pool.concurrency() == 1 ? measure::processor_seconds : measure::wall_seconds),
        meter_(pool, kernels::cluster_names[static_cast<std::size_t>(isa)], machine.memory(), clock_) {
    meter_.measure();
    start_ = clock_();
  }
  /// `operations` and `bytes` of one iteration; 0 bytes: not from memory.
  void report(benchmark::State& state, bool int8, double operations, double bytes) {
    const double time = (clock_() - start_) / static_cast<double>(state.iterations());
    meter_.measure();
    const measure::roofs& best = meter_.best();
    state.counters["GOP/s"] = operations / time / 1e9;
    state.counters["%compute"] = 100 * operations / time / (int8 ? best.int8 : best.f32);
    if (bytes == 0) return;
    state.counters["GB/s"] = bytes / time / 1e9;
    state.counters["%read"] = 100 * bytes / time / best.read;
  }

 private:
  measure::clock_fn clock_;
  measure::roof_meter meter_;
  double start_;
};

std::vector<float> numbers(std::size_t n) {
  std::vector<float> x(n);
  std::uint32_t state = 1;
  for (float& one : x) {
    state = state * 1664525u + 1013904223u;
    one = static_cast<float>(state >> 8) / 8388608.0f - 1;
  }
  return x;
}

void matmul(benchmark::State& state, const matmul_kernel* kernel, std::int64_t m, std::int64_t n, std::int64_t k,
            unsigned threads) {
  executor& pool = machine.threads(threads);
  measure::matmul_workload& work = machine.product(*kernel, n, k);
  const std::size_t prefetch = number_from("FLYWHEEL_BENCH_PREFETCH", kernels::matmul_args{}.prefetch_bytes);
  work.run(m, 1, prefetch);
  against_roofs roofs(pool, kernel->isa);
  for (auto _ : state) work.run(m, 1, prefetch);
  roofs.report(state, kernel->prepared.name.starts_with("q8"), work.operations(m),
               static_cast<double>(work.matrix_bytes()));
}

void pack(benchmark::State& state, const matmul_kernel* kernel, std::int64_t n, std::int64_t k) {
  machine.threads(1);
  measure::matmul_workload& work = machine.product(*kernel, n, k);
  for (auto _ : state) work.pack();
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(work.source_bytes()));
}

#if defined(FLYWHEEL_BENCH_PEERS)
void peer(benchmark::State& state, const bench::peer& other, kernels::cluster isa, std::int64_t m, std::int64_t n,
          std::int64_t k, unsigned threads) {
  executor& pool = machine.threads(threads);
  const auto run = other.prepare(static_cast<int>(threads), m, n, k);
  run();
  against_roofs roofs(pool, isa);
  for (auto _ : state) run();
  roofs.report(state, other.int8, 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k), 0);
}
#endif

struct attention_case {
  std::int64_t n_heads, n_kv_heads, head_dim, tokens, context;
};

void attention(benchmark::State& state, const kernel_set* set, attention_case c, dtype kv_type) {
  // Rotates over as many layers as exceed the caches.
  const std::size_t page = kernels::kv_page_bytes(kv_type, c.n_kv_heads, c.head_dim);
  const std::size_t pages = static_cast<std::size_t>((c.context + 63) / 64);
  executor& one = machine.threads(1);
  const std::span<std::byte> pool = machine.memory();
  machine.work.reset();  // its weights go
  const std::size_t layers = c.tokens > 1 ? 1 : std::max<std::size_t>(1, pool.size() / (page * pages));
  if (page * pages > pool.size()) return state.SkipWithError("FLYWHEEL_BENCH_MIB is too small");
  std::vector<std::byte*> table;
  for (std::size_t i = 0; i < pages * layers; ++i) table.push_back(pool.data() + i * page);
  const std::vector<float> rows = numbers(static_cast<std::size_t>(c.n_kv_heads * c.head_dim));
  std::memset(pool.data(), 0, page * pages);
  for (std::int64_t p = 0; p < c.context; ++p) {
    kernels::store_kv_args args;
    args.k = args.v = rows.data();
    args.kv_pages = table.data();
    args.kv_type = kv_type;
    args.n_tokens = 1;
    args.n_kv_heads = c.n_kv_heads;
    args.head_dim = c.head_dim;
    args.first_position = p;
    for (std::int64_t h = 0; h < c.n_kv_heads; ++h) set->store_kv(args, h);
  }
  for (std::size_t layer = 1; layer < layers; ++layer)
    std::memcpy(pool.data() + layer * page * pages, pool.data(), page * pages);
  const std::vector<float> q = numbers(static_cast<std::size_t>(c.tokens * c.n_heads * c.head_dim));
  std::vector<float> out(q.size());
  kernels::attention_args args;
  args.q = q.data();
  args.q_stride = args.out_stride = c.n_heads * c.head_dim;
  args.out = out.data();
  args.kv_type = kv_type;
  args.n_heads = c.n_heads;
  args.n_kv_heads = c.n_kv_heads;
  args.head_dim = c.head_dim;
  args.first_position = c.context - c.tokens;
  args.scale = 0.1f;
  buffer scratch = buffer::zeros(set->attention_scratch(args) * sizeof(float)).value();
  std::size_t layer = 0;
  against_roofs roofs(one, set->isa);
  for (auto _ : state) {
    args.kv_pages = table.data() + layer * pages;
    for (std::int64_t h = 0; h < c.n_kv_heads; ++h)
      set->attention(args, h, 0, c.tokens, reinterpret_cast<float*>(scratch.mutable_data()));
    layer = layer + 1 == layers ? 0 : layer + 1;
  }
  const double seen = static_cast<double>(c.context) - static_cast<double>(c.tokens - 1) / 2;
  roofs.report(state, false, 4.0 * static_cast<double>(c.tokens * c.n_heads * c.head_dim) * seen,
               static_cast<double>(page * pages));
}

/// All heads of a gated delta-net layer between its projections: 16 key heads and 32 value heads of 128. One token
/// rotates over as many layers' states as exceed the caches.
void delta_net(benchmark::State& state, const kernel_set* set, std::int64_t tokens) {
  kernels::delta_net_args args;
  args.n_tokens = tokens;
  args.n_k_heads = 16;
  args.n_v_heads = 32;
  args.head_k_dim = args.head_v_dim = 128;
  args.conv_kernel = 4;
  args.norm_eps = 1e-6f;
  executor& one = machine.threads(1);
  const std::span<std::byte> pool = machine.memory();
  machine.work.reset();  // its weights go
  const auto floats = static_cast<std::size_t>(args.head_state(args.n_v_heads));
  const std::size_t layers = tokens > 1 ? 1 : pool.size() / (2 * floats * sizeof(float));
  if (layers == 0) return state.SkipWithError("FLYWHEEL_BENCH_MIB is too small");
  std::memset(pool.data(), 0, 2 * layers * floats * sizeof(float));
  float* const states = reinterpret_cast<float*>(pool.data());
  const auto rows = [&](std::int64_t cols) { return numbers(static_cast<std::size_t>(tokens * cols)); };
  const std::vector<float> qkv = rows(args.channels()), z = rows(args.values()), gates = rows(args.n_v_heads);
  const std::vector<float> taps = numbers(static_cast<std::size_t>(args.conv_kernel * args.channels()));
  const std::vector<float> vectors(static_cast<std::size_t>(args.head_v_dim), -0.1f);
  std::vector<float> out(z.size());
  args.qkv = qkv.data();
  args.z = z.data();
  args.beta = args.alpha = gates.data();
  args.taps = taps.data();
  args.dt = args.a = args.norm = vectors.data();
  args.out = out.data();
  buffer scratch = buffer::zeros(set->delta_net_scratch(args) * sizeof(float)).value();
  std::size_t layer = 0;
  bool swapped = false;
  against_roofs roofs(one, set->isa);
  for (auto _ : state) {
    float* const both = states + 2 * layer * floats;
    args.state = both + (swapped ? floats : 0);
    args.next_state = both + (swapped ? 0 : floats);
    for (std::int64_t h = 0; h < args.n_v_heads; ++h)
      set->delta_net(args, h, reinterpret_cast<float*>(scratch.mutable_data()));
    if (++layer == layers) layer = 0, swapped = !swapped;
  }
  const auto elements = static_cast<double>(args.n_v_heads * args.head_k_dim * args.head_v_dim);
  roofs.report(state, false, 7 * elements * static_cast<double>(tokens),
               tokens > 1 ? 0 : 2 * static_cast<double>(floats * sizeof(float)));
}

/// Element-wise kernels on rows that stay in L1.
template <class Body>
void rows(benchmark::State& state, std::int64_t n, std::int64_t bytes_per_element, Body body) {
  std::vector<float> a = numbers(static_cast<std::size_t>(n)), b = a, c = a, d = a;
  for (auto _ : state) {
    body(a.data(), b.data(), c.data(), d.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * n);
  state.SetBytesProcessed(state.iterations() * n * bytes_per_element);
}

void register_element_wise(const kernel_set* set, const std::string& isa) {
  constexpr std::int64_t n = 2048;
  const auto burst = [&](const char* name, auto body) {
    benchmark::RegisterBenchmark((std::string(name) + "/" + isa).c_str(), [=](benchmark::State& state) {
      double operations = 0;
      for (auto _ : state) operations += body(std::int64_t{10000});
      state.counters["GOP/s"] = benchmark::Counter(operations / 1e9, benchmark::Counter::kIsRate);
    });
  };
  burst("int8_dots", set->int8_dots);
  burst("f32_fmas", set->f32_fmas);
  if (set->bf16_dots(1) > 0) burst("bf16_dots", set->bf16_dots);
  benchmark::RegisterBenchmark(("read_pass/" + isa).c_str(), [=](benchmark::State& state) {
    machine.threads(1);
    const std::span<const std::byte> pool = machine.memory();
    double bytes = 0;
    for (auto _ : state) bytes += set->read_pass(pool.data(), pool.size());
    state.counters["GB/s"] = benchmark::Counter(bytes / 1e9, benchmark::Counter::kIsRate);
  });
  const auto add = [&](const char* name, std::int64_t bytes, auto body) {
    benchmark::RegisterBenchmark((std::string(name) + "/" + isa).c_str(),
                                 [=](benchmark::State& state) { rows(state, n, bytes, body); });
  };
  add("rms_norm", 12, [=](float* a, float* b, float* c, float*) { set->rms_norm(a, b, 1e-5f, n, c); });
  add("add_rms_norm", 20, [=](float* a, float* b, float* c, float* d) { set->add_rms_norm(a, b, a, 1e-5f, n, c, d); });
  add("layer_norm", 16, [=](float* a, float* b, float* c, float* d) { set->layer_norm(a, b, c, 1e-5f, n, d); });
  add("rope_adjacent", 8,
      [=](float* a, float* b, float* c, float*) { set->rope(a, n / 64, 64, 64, b, c, rope_pairs::adjacent); });
  add("rope_halves", 8,
      [=](float* a, float* b, float* c, float*) { set->rope(a, n / 64, 64, 64, b, c, rope_pairs::halves); });
  add("glu_silu", 12, [=](float* a, float* b, float* c, float*) { set->glu(activation::silu, a, b, n, c); });
  add("glu_gelu_tanh", 12, [=](float* a, float* b, float* c, float*) { set->glu(activation::gelu_tanh, a, b, n, c); });
  add("activate_silu", 8, [=](float* a, float*, float* c, float*) { set->activate(activation::silu, a, n, c); });
  add("add", 12, [=](float* a, float* b, float* c, float*) { set->add(a, b, n, c); });
  add("scaled_add", 12, [=](float* a, float*, float* c, float*) { set->scaled_add(a, 1e-9f, n, c); });
  add("scale", 8, [=](float* a, float*, float* c, float*) { set->scale(a, 0.5f, n, c); });
  add("f32_to_f16", 6,
      [=](float* a, float*, float* c, float*) { set->f32_to_f16(a, n, reinterpret_cast<std::uint16_t*>(c)); });
  for (const dtype type : {dtype::f16, dtype::bf16, dtype::q8_0, dtype::q4_0, dtype::q4_k, dtype::q6_k}) {
    const kernels::to_f32_fn convert = kernels::find_to_f32(set->isa, type);
    add(("to_f32_" + std::string(to_string(type))).c_str(), 4,
        [=](float* a, float*, float* c, float*) { convert(reinterpret_cast<const std::byte*>(a), n, c); });
  }
}

}  // namespace

int main(int argc, char** argv) {
  const isa_report report = detect_isa("generic").value();
  const kernels::cluster best_isa = kernels::find_cluster(detect_isa().value_or(report).selected);
  const auto matmul_threads = static_cast<unsigned>(number_from("FLYWHEEL_BENCH_THREADS", 1));
  const auto runnable = [&](kernels::cluster isa) {
    for (const isa_status& status : report.clusters)
      if (status.name == kernels::cluster_names[static_cast<std::size_t>(isa)]) return status.built && status.detected;
    return false;
  };
  for (const matmul_kernel& kernel : kernels::all_matmul_kernels()) {
    if (!runnable(kernel.isa) || !formats::find_decoder(kernel.weight)) continue;
    for (const std::int64_t m : {1, 2, 4, 6, 8, 32, 512})
      benchmark::RegisterBenchmark(
          ("matmul/" + std::string(kernel.name) + "/" + std::to_string(m) + "x2048x2048").c_str(),
          [&kernel, m, matmul_threads](benchmark::State& state) {
            matmul(state, &kernel, m, 2048, 2048, matmul_threads);
          })
          ->UseRealTime();
    benchmark::RegisterBenchmark(("pack/" + std::string(kernel.name)).c_str(),
                                 [&kernel](benchmark::State& state) { pack(state, &kernel, 2048, 2048); });
  }
  // One product, single and on all cores; with FLYWHEEL_BENCH_PEERS other libraries' beside it.
  constexpr std::int64_t m = 512, n = 4096, k = 4096;
  std::vector<unsigned> counts = {1};
  if (usable_cores() > 1) counts.push_back(usable_cores());
  for (const unsigned threads : counts) {
    const auto add = [&](const std::string& name, auto body) {
      benchmark::RegisterBenchmark(("gemm/512x4096x4096/threads:" + std::to_string(threads) + "/" + name).c_str(), body)
          ->UseRealTime();
    };
    for (const dtype type : {dtype::q8_channel, dtype::q4_0, dtype::q8_0, dtype::f32})
      add("flywheel_" + std::string(to_string(type)),
          [=](benchmark::State& state) { matmul(state, kernels::find_matmul(best_isa, type), m, n, k, threads); });
#if defined(FLYWHEEL_BENCH_PEERS)
    for (const bench::peer& other : bench::peers())
      add(other.name, [=](benchmark::State& state) { peer(state, other, best_isa, m, n, k, threads); });
#endif
  }
  for (std::size_t i = 0; i < std::size(kernels::cluster_names); ++i) {
    const kernels::cluster isa = static_cast<kernels::cluster>(i);
    if (!runnable(isa)) continue;
    const kernel_set* set = &kernels::select(isa);
    const std::string name(kernels::cluster_names[i]);
    for (const dtype kv : {dtype::f16, dtype::f32, dtype::q8_0, dtype::q4_0})
      for (const attention_case c : {attention_case{32, 4, 64, 1, 4096}, attention_case{32, 8, 128, 1, 4096},
                                     attention_case{16, 16, 64, 1, 1024}, attention_case{32, 4, 64, 512, 512},
                                     attention_case{32, 4, 64, 512, 4096}, attention_case{16, 16, 64, 512, 512}})
        benchmark::RegisterBenchmark(
            ("attention/" + name + "/" + std::string(to_string(kv)) + "/" + std::to_string(c.n_heads) + ":" +
             std::to_string(c.n_kv_heads) + "x" + std::to_string(c.head_dim) + "/tokens:" + std::to_string(c.tokens) +
             "/context:" + std::to_string(c.context))
                .c_str(),
            [=](benchmark::State& state) { attention(state, set, c, kv); });
    for (const std::int64_t tokens : {1, 512})
      benchmark::RegisterBenchmark(("delta_net/" + name + "/16:32x128/tokens:" + std::to_string(tokens)).c_str(),
                                   [=](benchmark::State& state) { delta_net(state, set, tokens); });
    register_element_wise(set, name);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
