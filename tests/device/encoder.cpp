// Encoders on the CPU device against the graph's meaning in double precision.
#include <cmath>

#include "device/runner.hpp"
#include "flywheel/core/isa.hpp"
#include "flywheel/graph/rewrite.hpp"
#include "src/model/architecture.hpp"
#include "support/catch.hpp"
#include "support/reference_graph.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_encoder.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace encoder_steps {
namespace {

constexpr std::int32_t n_vocab = 57;

struct fixture {
  temp_folder folder;
  io::archive file;
  detail::hyperparameters h;

  explicit fixture(const tiny_encoder& m) {
    write_tiny_encoder(folder / "m.gguf", m);
    file = io::archive::open(folder / "m.gguf").value();
    h = detail::read_hyperparameters(file).value();
  }
  [[nodiscard]] graph::graph build(detail::graph_output output = detail::graph_output::hidden) const {
    return detail::find_architecture(h.architecture).value()->build(file, h, output).value();
  }
};

struct text {
  std::vector<std::int32_t> ids, types;
};
text text_of(std::size_t n, std::uint64_t seed) {
  tiny_random random(seed);
  text t;
  for (std::size_t i = 0; i < n; ++i) {
    t.ids.push_back(static_cast<std::int32_t>(random.uniform() * n_vocab));
    t.types.push_back(i > n / 2);
  }
  return t;
}

/// Results of all rows of some texts in one chunk.
std::vector<float> together(graph_runner& runner, const std::vector<text>& texts) {
  text joined;
  std::vector<device::sequence_slice> slices;
  for (const text& t : texts) {
    joined.ids.insert(joined.ids.end(), t.ids.begin(), t.ids.end());
    joined.types.insert(joined.types.end(), t.types.begin(), t.types.end());
    slices.push_back({static_cast<std::int64_t>(t.ids.size())});
  }
  return runner.run(joined.ids, slices, dtype::f16, all_rows(joined.ids.size()), {}, joined.types).value();
}

tiny_encoder encoder_of(bool nomic, bool fused = false) {
  tiny_encoder m;
  m.nomic = nomic;
  m.fused = fused;
  m.context = 300;
  return m;
}

}  // namespace

TEST_CASE("An encoder equals its meaning on every ISA cluster, plain and optimized") {
  const auto [nomic, fused] = GENERATE(std::pair(false, false), std::pair(false, true), std::pair(true, true));
  const std::size_t length = GENERATE(1, 75, 300);  // of one page, of several, of two blocks of queries
  const fixture f(encoder_of(nomic, fused));
  const text t = text_of(length, 3);
  const graph::graph plain = f.build(), optimized = graph::optimize(plain);
  const auto want = reference_graph(plain, f.file).run(t.ids, all_rows(length), t.types);
  CHECK(optimized.nodes.size() < plain.nodes.size());
  CHECK(distance(std::vector<float>(want.begin(), want.end()),
                 reference_graph(optimized, f.file).run(t.ids, all_rows(length), t.types)) < 1e-6);
  const isa_report report = detect_isa().value();
  for (const isa_status& s : report.clusters) {
    if (!s.built || !s.detected) continue;
    INFO(s.name);
    auto pool = make_thread_team(2).value();
    for (const graph::graph& g : {plain, optimized}) {
      graph_runner runner(g, f.file, device::make_cpu_device(s.name).value(), pool);
      CHECK(distance(together(runner, {t}), want) < 5e-5);
    }
  }
}

TEST_CASE("Every text of an encoder's chunk sees itself alone, whatever the threads") {
  const fixture f(encoder_of(GENERATE(false, true)));
  const graph::graph g = graph::optimize(f.build());
  const auto cpu = device::make_cpu_device("").value();
  std::vector<text> texts;
  std::vector<float> alone;
  graph_runner serial(g, f.file, cpu, serial_executor());
  for (const std::size_t length : {5UL, 300UL, 1UL, 64UL, 65UL, 257UL, 3UL}) {
    texts.push_back(text_of(length, length));
    const std::vector<float> rows = together(serial, {texts.back()});
    alone.insert(alone.end(), rows.begin(), rows.end());
  }
  CHECK(together(serial, texts) == alone);
  for (const unsigned threads : {2U, 5U}) {
    graph_runner team(g, f.file, cpu, make_thread_team(threads).value());
    CHECK(together(team, texts) == alone);
  }
  // The last token changes the first one's result: attention is not causal.
  text other = texts[0];
  other.ids.back() = (other.ids.back() + 1) % n_vocab;
  const std::vector<float> changed = together(serial, {other});
  CHECK(changed.front() != alone.front());
}

TEST_CASE("An encoder without token types takes the first") {
  const fixture f(encoder_of(false));
  graph_runner runner(f.build(), f.file, device::make_cpu_device("").value(), serial_executor());
  text t = text_of(9, 1);
  const device::sequence_slice slice{9};
  const auto untyped = runner.run(t.ids, {&slice, 1}, dtype::f16, all_rows(9)).value();
  CHECK(untyped != together(runner, {t}));
  std::fill(t.types.begin(), t.types.end(), 0);
  CHECK(untyped == together(runner, {t}));
}

}  // namespace encoder_steps
