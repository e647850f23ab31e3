// The delta-net step against the graph's meaning in double precision, and its independence of threads, chunks and
// neighbours.
#include <cmath>

#include "device/runner.hpp"
#include "flywheel/core/isa.hpp"
#include "flywheel/graph/builder.hpp"
#include "flywheel/graph/rewrite.hpp"
#include "support/catch.hpp"
#include "support/reference_graph.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace delta_net_step {
namespace {

constexpr std::int64_t vocab = 50, width = 32, layers = 2;

/// Two delta-net layers around a residual stream, with random weights.
struct fixture {
  temp_folder folder;
  io::archive file;
  graph::delta_net_attributes a;

  fixture() {
    a.n_k_heads = 2;
    a.n_v_heads = 4;
    a.head_k_dim = 32;
    a.head_v_dim = 48;
    a.conv_kernel = 4;
    std::vector<tiny_tensor> tensors;
    tiny_random random(7);
    const auto add = [&](const std::string& name, shape dims, float scale, float shift = 0) {
      tiny_tensor t{{name, dtype::f32, dims, 0}, {}};
      for (std::int64_t i = 0; i < dims.elements(); ++i) t.values.push_back(random.normal() * scale + shift);
      tensors.push_back(std::move(t));
    };
    add("table", {vocab, width}, 1);
    for (std::int64_t l = 0; l < layers; ++l) {
      const std::string at = std::to_string(l) + ".";
      add(at + "qkv", {a.channels(), width}, 0.2F);
      add(at + "z", {a.values(), width}, 0.2F);
      add(at + "beta", {a.n_v_heads, width}, 0.2F);
      add(at + "alpha", {a.n_v_heads, width}, 0.2F);
      add(at + "taps", {a.channels(), a.conv_kernel}, 0.5F);
      add(at + "dt", {a.n_v_heads}, 0.5F);
      add(at + "a", {a.n_v_heads}, 0.05F, -0.2F);
      add(at + "norm", {a.head_v_dim}, 0.1F, 1);
      add(at + "out", {width, a.values()}, 0.1F);
    }
    write_tensors(folder / "w.gguf", io::metadata{}, tensors);
    file = io::archive::open(folder / "w.gguf").value();
  }

  [[nodiscard]] result<graph::graph> build(graph::delta_net_attributes wanted) const {
    graph::builder b(file);
    graph::value x = b.embed(b.weight("table", {vocab, width}), b.token_ids());
    for (wanted.layer = 0; wanted.layer < layers; ++wanted.layer) {
      const auto name = [&](const char* part) { return std::to_string(wanted.layer) + "." + part; };
      const auto product = [&](const char* part, std::int64_t n) {
        return b.matmul(x, b.weight(name(part), {n, width}));
      };
      const graph::builder::delta_net_inputs in = {product("qkv", a.channels()),
                                                   product("z", a.values()),
                                                   product("beta", a.n_v_heads),
                                                   product("alpha", a.n_v_heads),
                                                   b.weight(name("taps"), {a.channels(), a.conv_kernel}),
                                                   b.weight(name("dt"), {a.n_v_heads}),
                                                   b.weight(name("a"), {a.n_v_heads}),
                                                   b.weight(name("norm"), {a.head_v_dim})};
      x = b.add(x, b.matmul(b.delta_net(in, wanted), b.weight(name("out"), {width, a.values()})));
    }
    b.output(b.select_outputs(x));
    return b.finish();
  }
};

std::vector<std::int32_t> some_ids(std::size_t n, std::size_t step = 7) {
  std::vector<std::int32_t> ids(n);
  for (std::size_t i = 0; i < n; ++i) ids[i] = static_cast<std::int32_t>((i * step + 3) % vocab);
  return ids;
}

}  // namespace

TEST_CASE("A delta net equals its meaning on every ISA cluster") {
  const fixture f;
  const auto ids = some_ids(70);
  const graph::graph plain = f.build(f.a).value();
  const graph::graph optimized = graph::optimize(plain);
  const auto want = reference_graph(plain, f.file).run(ids, all_rows(ids.size()));
  const isa_report report = detect_isa().value();
  for (const isa_status& isa : report.clusters) {
    if (!isa.built || !isa.detected) continue;
    INFO(isa.name);
    for (const graph::graph& g : {plain, optimized}) {
      graph_runner runner(g, f.file, device::make_cpu_device(isa.name).value(), make_thread_team(2).value());
      CHECK(runner.weight_bytes == runner.measured_bytes);
      test_cache cache(g, dtype::f32, 128);
      const auto got = runner.run_all(ids, cache, 70);
      double worst = 0, peak = 0;
      for (std::size_t i = 0; i < got.size(); ++i) {
        worst = std::max(worst, std::isfinite(got[i]) ? std::abs(static_cast<double>(got[i]) - want[i]) : 1e30);
        peak = std::max(peak, std::abs(want[i]));
      }
      CHECK(worst < 1e-5 * peak);
    }
  }
}

TEST_CASE("A delta net's results do not depend on threads, chunks or neighbours") {
  const fixture f;
  const auto ids = some_ids(75);
  const graph::graph g = graph::optimize(f.build(f.a).value());
  const auto cpu = device::make_cpu_device("").value();
  test_cache first(g, dtype::f32, 128);
  const auto want = graph_runner(g, f.file, cpu, serial_executor()).run_all(ids, first, ids.size());
  graph_runner runner(g, f.file, cpu, make_thread_team(3).value());
  for (const std::size_t chunk : {1UL, 2UL, 33UL, 75UL}) {
    test_cache cache(g, dtype::f32, 128);
    CHECK(runner.run_all(ids, cache, chunk) == want);
  }
  // Another sequence in front, then both go on together.
  test_cache a(g, dtype::f32, 128), b(g, dtype::f32, 128);
  const auto other = some_ids(20, 11);
  std::vector<std::int32_t> both(other);
  both.insert(both.end(), ids.begin(), ids.begin() + 40);
  const device::sequence_slice slices[] = {a.slice(20, 0), b.slice(40, 0)};
  const auto got = runner.run(both, slices, dtype::f32, all_rows(both.size())).value();
  CHECK(std::equal(got.begin() + 20 * width, got.end(), want.begin(), want.begin() + 40 * width));
  a.advance();
  b.advance();
  const std::int32_t next[] = {other[0], ids[40]};
  const device::sequence_slice steps[] = {a.slice(1, 20), b.slice(1, 40)};
  const auto decoded = runner.run(next, steps, dtype::f32, all_rows(2)).value();
  CHECK(std::equal(decoded.begin() + width, decoded.end(), want.begin() + 40 * width, want.begin() + 41 * width));
  // Without advance() the states before are still whole: the same step gives the same again.
  const device::sequence_slice again[] = {a.slice(1, 20), b.slice(1, 40)};
  CHECK(runner.run(next, again, dtype::f32, all_rows(2)).value() == decoded);
}

TEST_CASE("A delta net that does not fit is refused") {
  const fixture f;
  const auto message_with = [&](auto change) {
    graph::delta_net_attributes a = f.a;
    change(a);
    const auto built = f.build(a);
    REQUIRE(!built);
    CHECK(built.error().code == errc::invalid_argument);
    return built.error().message;
  };
  CHECK(message_with([](auto& a) { a.n_k_heads = 3; }).find("key heads") != std::string::npos);
  CHECK(message_with([](auto& a) { a.conv_kernel = 17; }).find("limit is 16") != std::string::npos);
  CHECK(message_with([](auto& a) { a.conv_kernel = 3; }).find("0.taps") != std::string::npos);
  CHECK(message_with([](auto& a) { a.head_v_dim = 0; }).find("0 heads") != std::string::npos);
  CHECK(message_with([](auto& a) { a.head_k_dim = 16; }).find("columns") != std::string::npos);
}

}  // namespace delta_net_step
