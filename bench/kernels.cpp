// Every line of every kernels.inc that this CPU can run: GOP/s, GB/s, and percent of the roof that binds, both measured
// on one thread. The roofs (int8 dot product, f32 fused multiply-add, reading memory) are measured in bursts just
// before and after each benchmark, so that a busy machine slows both. Products rotate over more weights than caches
// hold.
//
//   bench-kernels --benchmark_filter='matmul/.*q4_0.*avx512'
//   FLYWHEEL_BENCH_PREFETCH=0 bench-kernels ...               another prefetch distance than the default
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/isa.hpp"
#include "flywheel/core/tensor.hpp"
#include "flywheel/formats/formats.hpp"
#include "kernels/registry.hpp"

using namespace flywheel;
using kernels::kernel_set;
using kernels::matmul_kernel;

namespace {

/// Processor time of this program, which has one thread.
double now() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

template <class Body>
double timed(Body body) {
  const double start = now();
  body();
  return std::max(now() - start, 1e-6);
}

// ---- Roofs ----------------------------------------------------------------------------------------------------------

/// Operations per second of a cluster's dot products or multiply-adds.
double compute_roof(const kernel_set& set, bool int8) {
  constexpr std::int64_t rounds = 200000;  // under a millisecond
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    double operations = 0;
    const double time = timed([&] { operations = (int8 ? set.int8_dots : set.f32_fmas)(rounds); });
    best = std::max(best, operations / time);
  }
  return best;
}

constexpr std::size_t pool_bytes = std::size_t{192} << 20;  // more than four times most L3 caches

/// Bytes per second of reading the pool on one thread.
double read_roof(const kernel_set& set, const std::byte* pool) {
  double best = 0;
  for (int i = 0; i < 2; ++i) {
    double bytes = 0;
    const double time = timed([&] { bytes = set.read_pass(pool, pool_bytes); });
    best = std::max(best, bytes / time);
  }
  return best;
}

// ---- Benchmarks -----------------------------------------------------------------------------------------------------

std::vector<float> numbers(std::size_t n) {
  std::vector<float> x(n);
  std::uint32_t state = 1;
  for (float& one : x) {
    state = state * 1664525u + 1013904223u;
    one = static_cast<float>(state >> 8) / 8388608.0f - 1;
  }
  return x;
}

/// n rows of k weights of a format: encoded noise, or where there is no encoder small codes with a scale of zero.
std::vector<std::byte> weight_rows(dtype type, std::int64_t n, std::int64_t k) {
  std::vector<std::byte> rows(row_bytes(type, k) * static_cast<std::size_t>(n));
  const std::vector<float> x = numbers(static_cast<std::size_t>(k) + 32);
  if (const formats::encode_fn encode = formats::find_encoder(type))
    for (std::int64_t j = 0; j < n; ++j)
      encode(x.data() + j % 32, k, rows.data() + static_cast<std::size_t>(j) * row_bytes(type, k));
  return rows;
}

void matmul(benchmark::State& state, const matmul_kernel* kernel, std::int64_t m, std::int64_t n, std::int64_t k) {
  const std::size_t panel = kernel->panel_bytes(k);
  const std::size_t matrix = panel * static_cast<std::size_t>((n + kernel->panel_cols - 1) / kernel->panel_cols);
  const std::size_t copies = std::max<std::size_t>(1, pool_bytes / matrix);
  buffer pool = buffer::zeros(std::max(copies * matrix, pool_bytes)).value();
  {
    const std::vector<std::byte> rows = weight_rows(kernel->weight, n, k);
    const std::size_t stride = row_bytes(kernel->weight, k);
    for (std::int64_t j = 0; j < n; j += kernel->panel_cols)
      kernel->pack(rows.data() + static_cast<std::size_t>(j) * stride, stride, kernel->panel_cols, k,
                   pool.mutable_data() + static_cast<std::size_t>(j / kernel->panel_cols) * panel);
  }
  for (std::size_t i = 1; i < copies; ++i) std::memcpy(pool.mutable_data() + i * matrix, pool.data(), matrix);
  const std::vector<float> x = numbers(static_cast<std::size_t>(m * k));
  buffer prepared = buffer::zeros(kernel->prepared_bytes(m, k)).value();
  std::vector<float> y(static_cast<std::size_t>(m * n));
  const bool int8 = kernel->prepared.name.substr(0, 2) == "q8";
  const kernel_set& set = kernels::select(kernel->isa);

  const double compute_before = compute_roof(set, int8), read_before = read_roof(set, pool.data());
  const char* prefetch = std::getenv("FLYWHEEL_BENCH_PREFETCH");
  std::size_t copy = 0;
  const double start = now();
  for (auto _ : state) {
    kernel->prepare(x.data(), k, 0, m, k, prepared.mutable_data());
    kernels::matmul_args args;
    args.prepared = prepared.data();
    args.row_end = m;
    args.panels = pool.data() + copy * matrix;
    args.k = k;
    args.n = n;
    args.y = y.data();
    args.y_stride = n;
    if (prefetch) args.prefetch_bytes = static_cast<std::size_t>(std::atol(prefetch));
    kernel->run(args);
    copy = copy + 1 == copies ? 0 : copy + 1;
    benchmark::ClobberMemory();
  }
  const double time = (now() - start) / static_cast<double>(state.iterations());
  const double compute = std::max(compute_before, compute_roof(set, int8));
  const double read = std::max(read_before, read_roof(set, pool.data()));
  const double operations = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  state.counters["GOP/s"] = operations / time / 1e9;
  state.counters["GB/s"] = static_cast<double>(matrix) / time / 1e9;
  state.counters["%compute"] = 100 * operations / time / compute;
  state.counters["%read"] = 100 * static_cast<double>(matrix) / time / read;
}

void pack(benchmark::State& state, const matmul_kernel* kernel, std::int64_t n, std::int64_t k) {
  const std::vector<std::byte> rows = weight_rows(kernel->weight, n, k);
  const std::size_t stride = row_bytes(kernel->weight, k);
  const std::size_t panel = kernel->panel_bytes(k);
  buffer packed = buffer::zeros(panel * static_cast<std::size_t>(n / kernel->panel_cols)).value();
  for (auto _ : state)
    for (std::int64_t j = 0; j < n; j += kernel->panel_cols)
      kernel->pack(rows.data() + static_cast<std::size_t>(j) * stride, stride, kernel->panel_cols, k,
                   packed.mutable_data() + static_cast<std::size_t>(j / kernel->panel_cols) * panel);
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(rows.size()));
}

struct attention_case {
  std::int64_t n_heads, n_kv_heads, head_dim, tokens, context;
};

void attention(benchmark::State& state, const kernel_set* set, attention_case c, dtype kv_type) {
  // Rotates over as many layers as exceed the caches.
  const std::size_t page = kernels::kv_page_bytes(kv_type, c.n_kv_heads, c.head_dim);
  const std::size_t pages = static_cast<std::size_t>((c.context + 63) / 64);
  const std::size_t layers = c.tokens > 1 ? 1 : std::max<std::size_t>(1, pool_bytes / (page * pages));
  buffer pool = buffer::zeros(std::max(page * pages * layers, pool_bytes)).value();
  std::vector<std::byte*> table;
  for (std::size_t i = 0; i < pages * layers; ++i) table.push_back(pool.mutable_data() + i * page);
  const std::vector<float> rows = numbers(static_cast<std::size_t>(c.n_kv_heads * c.head_dim));
  for (std::size_t layer = 0; layer < layers; ++layer)
    for (std::int64_t p = 0; p < c.context; ++p) {
      kernels::store_kv_args args;
      args.k = args.v = rows.data();
      args.kv_pages = table.data() + layer * pages;
      args.kv_type = kv_type;
      args.n_tokens = 1;
      args.n_kv_heads = c.n_kv_heads;
      args.head_dim = c.head_dim;
      args.first_position = p;
      for (std::int64_t h = 0; h < c.n_kv_heads; ++h) set->store_kv(args, h);
    }
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
  const double compute_before = compute_roof(*set, false), read_before = read_roof(*set, pool.data());
  std::size_t layer = 0;
  const double start = now();
  for (auto _ : state) {
    args.kv_pages = table.data() + layer * pages;
    for (std::int64_t h = 0; h < c.n_kv_heads; ++h)
      set->attention(args, h, 0, c.tokens, reinterpret_cast<float*>(scratch.mutable_data()));
    layer = layer + 1 == layers ? 0 : layer + 1;
  }
  const double time = (now() - start) / static_cast<double>(state.iterations());
  const double compute = std::max(compute_before, compute_roof(*set, false));
  const double read = std::max(read_before, read_roof(*set, pool.data()));
  const double bytes = static_cast<double>(page * pages);
  const double seen = static_cast<double>(c.context) - static_cast<double>(c.tokens - 1) / 2;
  const double operations = 4.0 * static_cast<double>(c.tokens * c.n_heads * c.head_dim) * seen;
  state.counters["GOP/s"] = operations / time / 1e9;
  state.counters["GB/s"] = bytes / time / 1e9;
  state.counters["%compute"] = 100 * operations / time / compute;
  state.counters["%read"] = 100 * bytes / time / read;
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
    buffer pool = buffer::allocate(pool_bytes).value();
    std::memset(pool.mutable_data(), 1, pool_bytes);
    double bytes = 0;
    for (auto _ : state) bytes += set->read_pass(pool.data(), pool_bytes);
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
          [&kernel, m](benchmark::State& state) { matmul(state, &kernel, m, 2048, 2048); });
    benchmark::RegisterBenchmark(("pack/" + std::string(kernel.name)).c_str(),
                                 [&kernel](benchmark::State& state) { pack(state, &kernel, 2048, 2048); });
  }
  for (std::size_t i = 0; i < std::size(kernels::cluster_names); ++i) {
    const kernels::cluster isa = static_cast<kernels::cluster>(i);
    if (!runnable(isa)) continue;
    const kernel_set* set = &kernels::select(isa);
    const std::string name(kernels::cluster_names[i]);
    for (const dtype kv : {dtype::f16, dtype::f32})
      for (const attention_case c : {attention_case{32, 4, 64, 1, 4096}, attention_case{32, 8, 128, 1, 4096},
                                     attention_case{16, 16, 64, 1, 1024}, attention_case{32, 4, 64, 512, 512},
                                     attention_case{32, 4, 64, 512, 4096}, attention_case{16, 16, 64, 512, 512}})
        benchmark::RegisterBenchmark(
            ("attention/" + name + "/" + std::string(to_string(kv)) + "/" + std::to_string(c.n_heads) + ":" +
             std::to_string(c.n_kv_heads) + "x" + std::to_string(c.head_dim) + "/tokens:" + std::to_string(c.tokens) +
             "/context:" + std::to_string(c.context))
                .c_str(),
            [=](benchmark::State& state) { attention(state, set, c, kv); });
    register_element_wise(set, name);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
