// The CPU device against the graph's meaning in double precision, on complete random models.
#include <atomic>
#include <cmath>
#include <thread>

#include "device/runner.hpp"
#include "flywheel/core/isa.hpp"
#include "flywheel/graph/rewrite.hpp"
#include "src/model/architecture.hpp"
#include "support/catch.hpp"
#include "support/reference_graph.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

struct fixture {
  temp_folder folder;
  io::archive file;
  detail::hyperparameters h;

  explicit fixture(const tiny_model& m,
                   const std::function<void(io::metadata&, std::vector<tiny_tensor>&)>& edit = {}) {
    write_tiny_model(folder / "m.gguf", m, edit);
    file = io::archive::open(folder / "m.gguf").value();
    h = detail::read_hyperparameters(file).value();
  }
  [[nodiscard]] graph::graph build(detail::graph_output output = detail::graph_output::logits) const {
    return detail::find_architecture("llama").value()->build(file, h, output).value();
  }
  [[nodiscard]] test_cache cache(dtype type = dtype::f32, std::int64_t positions = 256) const {
    return {h.n_layers, h.n_kv_heads, h.head_dim, type, positions};
  }
};

tiny_model model_of(std::int32_t experts, bool tied, dtype weights = dtype::f32) {
  tiny_model m;
  m.hidden = 64;
  m.layers = 2;
  m.heads = 4;
  m.kv_heads = 2;
  m.ffn = 160;  // not a multiple of any panel width above 32
  m.vocab = 333;
  m.experts = experts;
  m.tied = tied;
  m.weights = weights;
  m.vocabulary = false;
  return m;
}

std::vector<std::int32_t> some_ids(std::size_t n, std::int32_t vocab) {
  std::vector<std::int32_t> ids(n);
  for (std::size_t i = 0; i < n; ++i)
    ids[i] = static_cast<std::int32_t>((i * 7919 + 31) % static_cast<std::size_t>(vocab));
  return ids;
}

/// Root mean square of the differences, relative to the standard deviation of the reference.
double rms_distance(const std::vector<float>& got, const std::vector<double>& want) {
  REQUIRE(got.size() == want.size());
  double square = 0, wrong = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    square += want[i] * want[i];
    wrong += (static_cast<double>(got[i]) - want[i]) * (static_cast<double>(got[i]) - want[i]);
  }
  return std::sqrt(wrong / square);
}

std::vector<std::string> runnable_clusters() {
  std::vector<std::string> names;
  const isa_report report = detect_isa().value();
  for (const isa_status& s : report.clusters)
    if (s.built && s.detected) names.emplace_back(s.name);
  return names;
}

void rope_variant(io::metadata& meta, std::vector<tiny_tensor>& tensors) {
  meta.set("llama.rope.scaling.type", std::string("yarn"));
  meta.set("llama.rope.scaling.factor", 4.0F);
  meta.set("llama.rope.scaling.original_context_length", std::uint32_t{32});
  const auto add = [&](std::string name, std::vector<float> values) {
    tiny_tensor& t = tensors.emplace_back();
    t.plan.name = std::move(name);
    t.plan.dims = {static_cast<std::int64_t>(values.size())};
    t.values = std::move(values);
  };
  add("rope_freqs.weight", {1, 1, 1.5F, 2, 2, 4, 8, 8});
  for (int layer = 0; layer < 2; ++layer)
    for (const char* name : {"attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias", "ffn_gate.bias",
                             "ffn_up.bias", "ffn_down.bias"}) {
      const std::string part(name);
      const std::int64_t n = part == "attn_k.bias" || part == "attn_v.bias"          ? 32
                             : part.rfind("ffn_", 0) == 0 && part != "ffn_down.bias" ? 160
                                                                                     : 64;
      std::vector<float> bias(static_cast<std::size_t>(n));
      for (std::size_t i = 0; i < bias.size(); ++i) bias[i] = 0.1F * (static_cast<float>(i % 7) - 3);
      add("blk." + std::to_string(layer) + "." + part, std::move(bias));
    }
}

}  // namespace

TEST_CASE("A forward pass equals its meaning on every ISA cluster, plain and optimized") {
  const bool with_rope = GENERATE(false, true);
  const std::int32_t experts = GENERATE(0, 5);
  if (with_rope && experts) return;
  const fixture f(model_of(experts, !with_rope), with_rope ? rope_variant : decltype(&rope_variant){});
  const auto ids = some_ids(75, 333);
  const graph::graph plain = f.build();
  const auto want = reference_graph(plain, f.file).run(ids, all_rows(ids.size()));
  const graph::graph optimized = graph::optimize(plain);
  REQUIRE(optimized.nodes.size() < plain.nodes.size());
  CHECK(distance(std::vector<float>(want.begin(), want.end()),
                 reference_graph(optimized, f.file).run(ids, all_rows(ids.size()))) < 1e-6);
  for (const std::string& isa : runnable_clusters()) {
    INFO(isa);
    auto pool = make_thread_team(2).value();
    for (const graph::graph& g : {plain, optimized}) {
      graph_runner runner(g, f.file, device::make_cpu_device(isa).value(), pool);
      CHECK(runner.weight_bytes == runner.measured_bytes);
      test_cache cache = f.cache();
      CHECK(distance(runner.run_all(ids, cache, 75), want) < 5e-5);
      test_cache rounded = f.cache(dtype::f16);
      CHECK(distance(runner.run_all(ids, rounded, 75), want) < 1e-2);
    }
  }
}

TEST_CASE("Quantized weights give what their decoded values give") {
  const dtype type = GENERATE(dtype::f16, dtype::bf16, dtype::q8_0, dtype::q4_0, dtype::q5_1);
  const fixture f(model_of(0, true, type));
  const auto ids = some_ids(20, 333);
  const auto want = reference_graph(f.build(), f.file).run(ids, all_rows(ids.size()));
  INFO(to_string(type));
  graph_runner runner(graph::optimize(f.build()), f.file, device::make_cpu_device("").value(),
                      make_thread_team(2).value());
  test_cache cache = f.cache();
  const auto got = runner.run_all(ids, cache, 20);
  // Products with block-quantized weights may round activations to 8 bits: about 0.5% of noise each, a dozen in a row.
  if (info(type)->kind == dtype_kind::block)
    CHECK(rms_distance(got, want) < 0.04);
  else
    CHECK(distance(got, want) < 1e-4);
}

TEST_CASE("Results do not depend on threads, pools, chunks or neighbours") {
  const std::int32_t experts = GENERATE(0, 5);
  const dtype type = GENERATE(dtype::f32, dtype::q8_0);
  const fixture f(model_of(experts, false, type));
  const auto ids = some_ids(130, 333);
  const graph::graph g = graph::optimize(f.build());
  const auto cpu = device::make_cpu_device("").value();
  test_cache first = f.cache();
  const auto want = graph_runner(g, f.file, cpu, serial_executor()).run_all(ids, first, 130);

  for (unsigned threads : {2U, 3U, 5U}) {
    test_cache cache = f.cache();
    CHECK(graph_runner(g, f.file, cpu, make_thread_team(threads).value()).run_all(ids, cache, 130) == want);
  }
  for (std::size_t chunk : {1UL, 7UL, 64UL, 100UL}) {
    test_cache cache = f.cache();
    CHECK(graph_runner(g, f.file, cpu, make_thread_team(2).value()).run_all(ids, cache, chunk) == want);
  }
  SECTION("a host's pool that runs tasks one after the other") {
    host_pool pool;
    pool.concurrency = [](void*) { return 3U; };
    pool.run = [](void*, unsigned n, void (*task)(void*, unsigned), void* arg) {
      for (unsigned i = n; i-- > 0;) task(arg, i);
    };
    test_cache cache = f.cache();
    CHECK(graph_runner(g, f.file, cpu, make_host_executor(pool).value()).run_all(ids, cache, 50) == want);
  }
  SECTION("two sequences in one chunk") {
    graph_runner runner(g, f.file, cpu, make_thread_team(2).value());
    test_cache a = f.cache(), b = f.cache();
    const auto other = some_ids(37, 100);
    std::vector<std::int32_t> both(other);
    both.insert(both.end(), ids.begin(), ids.begin() + 40);
    const device::sequence_slice slices[] = {{37, 0, a.pages()}, {40, 0, b.pages()}};
    const auto got = runner.run(both, slices, dtype::f32, all_rows(both.size())).value();
    const std::size_t vocab = 333;
    CHECK(std::vector<float>(got.begin() + static_cast<std::ptrdiff_t>(37 * vocab), got.end()) ==
          std::vector<float>(want.begin(), want.begin() + static_cast<std::ptrdiff_t>(40 * vocab)));
    // Decoding both goes on where they stopped.
    const std::int32_t next[] = {other[0], ids[40]};
    const device::sequence_slice steps[] = {{1, 37, a.pages()}, {1, 40, b.pages()}};
    const auto decoded = runner.run(next, steps, dtype::f32, all_rows(2)).value();
    CHECK(std::vector<float>(decoded.begin() + static_cast<std::ptrdiff_t>(vocab), decoded.end()) ==
          std::vector<float>(want.begin() + static_cast<std::ptrdiff_t>(40 * vocab),
                             want.begin() + static_cast<std::ptrdiff_t>(41 * vocab)));
  }
}

TEST_CASE("A run can be stopped, and gives nothing when nothing is wanted") {
  const fixture f(model_of(0, true));
  graph_runner runner(graph::optimize(f.build()), f.file, device::make_cpu_device("").value(),
                      make_thread_team(2).value());
  test_cache cache = f.cache();
  const auto ids = some_ids(64, 333);
  const device::sequence_slice slice{64, 0, cache.pages()};
  std::stop_source stop;
  stop.request_stop();
  const auto stopped = runner.run(ids, {&slice, 1}, dtype::f32, all_rows(1), stop.get_token());
  REQUIRE(!stopped);
  CHECK(stopped.error().code == errc::cancelled);
  const auto none = runner.run(ids, {&slice, 1}, dtype::f32, {});
  REQUIRE(none);
  CHECK(none->empty());
}

TEST_CASE("Weights of a type without codec are refused by name") {
  const fixture f(model_of(0, true));
  graph::graph g = f.build();
  for (graph::weight_info& w : g.weights)
    if (w.name == "blk.1.ffn_up.weight") w.type = static_cast<dtype>(31);
  const auto cpu = device::make_cpu_device("").value();
  const device::device* devices[] = {cpu.get()};
  const auto parts = device::partition(g, devices);
  REQUIRE(!parts);
  CHECK(parts.error().code == errc::unsupported);
  CHECK(parts.error().message.find("blk.1.ffn_up.weight") != std::string::npos);
  CHECK(device::make_cpu_device("no_such_isa").error().code == errc::not_found);
}

namespace {
/// Claims rms_norm only.
class norm_device final : public device::device {
 public:
  const flywheel::device::capabilities& caps() const noexcept override { return caps_; }
  flywheel::device::support query(const graph::graph&, const graph::node& n) const override {
    if (n.kind == graph::op::rms_norm) return {true, {}, 0, 0};
    return {false, "only norms", 0, 0};
  }
  result<std::shared_ptr<const flywheel::device::device_weights>> measure(std::span<const flywheel::device::subgraph>,
                                                                          const io::archive&) const override {
    return error{errc::unsupported, "none", "norm"};
  }
  result<std::shared_ptr<const flywheel::device::device_weights>> load(std::span<const flywheel::device::subgraph>,
                                                                       const io::archive&, executor&,
                                                                       std::pmr::memory_resource*,
                                                                       const control&) const override {
    return error{errc::unsupported, "none", "norm"};
  }
  result<std::unique_ptr<const flywheel::device::executable>> compile(
      const flywheel::device::subgraph&, std::shared_ptr<const flywheel::device::device_weights>) const override {
    return error{errc::unsupported, "none", "norm"};
  }

 private:
  flywheel::device::capabilities caps_ = [] {
    flywheel::device::capabilities c;
    c.name = "norm";
    return c;
  }();
};
}  // namespace

TEST_CASE("A graph is cut where the device changes") {
  const fixture f(model_of(0, true));
  const graph::graph g = f.build();
  const auto cpu = device::make_cpu_device("").value();
  const norm_device norms;
  const device::device* devices[] = {&norms, cpu.get()};
  const auto parts = device::partition(g, devices).value().parts;
  std::size_t norm_nodes = 0, covered = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    covered += parts[i].part.nodes.size();
    if (i > 0) CHECK(parts[i].device != parts[i - 1].device);
    for (std::uint32_t n : parts[i].part.nodes)
      CHECK((g.nodes[n].kind == graph::op::rms_norm) == (parts[i].device == 0));
    if (parts[i].device == 0) norm_nodes += parts[i].part.nodes.size();
  }
  CHECK(norm_nodes == 5);  // two per layer and the last
  std::size_t computing = 0;
  for (const graph::node& n : g.nodes) computing += !graph::is_source(n.kind);
  CHECK(covered == computing);
  const device::device* only[] = {&norms};
  const auto none = device::partition(g, only);
  REQUIRE(!none);
  CHECK(none.error().message.find("only norms") != std::string::npos);
}
