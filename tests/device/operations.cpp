// Operations and their options one at a time: the CPU device against the graph's meaning in double precision, plain and
// optimized.
#include <cmath>

#include "device/runner.hpp"
#include "flywheel/graph/builder.hpp"
#include "flywheel/graph/rewrite.hpp"
#include "support/catch.hpp"
#include "support/reference_graph.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;
using graph::op;
using graph::value;

namespace rowwise_steps {
namespace {

constexpr std::int64_t width = 64, heads = 4, kv_heads = 2, head = 16, experts = 6, hidden = 40;

/// A file with weights for every operation.
struct fixture {
  temp_folder folder;
  io::archive file;
  fixture() {
    tiny_random random(5);
    std::vector<tiny_tensor> tensors;
    const auto add = [&](const char* name, shape dims, float center = 0, float spread = 1) {
      tiny_tensor t{{name, dtype::f32, dims, 0}, {}};
      if (dims.rank() > 1) spread /= std::sqrt(static_cast<float>(dims.cols()));
      for (std::int64_t i = 0; i < dims.elements(); ++i) t.values.push_back(center + spread * random.normal());
      tensors.push_back(t);
    };
    add("table", {50, width}, 0, 8);
    add("norm", {width}, 1, 0.3F);
    add("qkv", {(heads + 2 * kv_heads) * head, width});
    add("gate_up", {2 * hidden, width});
    add("down", {width, hidden});
    add("q_norm", {head}, 1, 0.3F);
    add("k_norm", {head}, 1, 0.3F);
    add("sinks", {heads}, 0, 2);
    add("factors", {head / 2}, 1.5F, 0.1F);
    add("long_factors", {head / 2}, 4, 0.5F);
    add("factor", {1}, 1.5F, 0.1F);
    add("router", {experts, width}, 0, 2);
    add("gate_up_exps", {experts, 2 * hidden, width});
    add("down_exps", {experts, width, hidden});
    add("gate_bias", {experts, hidden}, 0, 20);
    add("up_bias", {experts, hidden}, 0, 20);
    add("down_bias", {experts, width});
    add("selection", {experts}, 0, 0.5F);
    add("expert_scale", {experts}, 1, 0.5F);
    write_tensors(folder / "w.gguf", io::metadata{}, tensors);
    file = io::archive::open(folder / "w.gguf").value();
  }
};

/// Builds a graph that begins with x = embed(ids), whose result `body` gives.
template <class Body>
graph::graph build(const fixture& f, Body body) {
  graph::builder b(f.file);
  const value x = b.embed(b.weight("table", {50, width}), b.token_ids());
  b.output(body(b, x));
  return b.finish().value();
}

std::size_t count(const graph::graph& g, op kind) {
  std::size_t n = 0;
  for (const graph::node& node : g.nodes) n += node.kind == kind;
  return n;
}

/// Runs it, plain and optimized, in different chunks; returns what it should be.
std::vector<double> check(const fixture& f, const graph::graph& plain, std::int64_t n_ctx = 0) {
  std::vector<std::int32_t> ids(75), rows(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<std::int32_t>(i * 31 % 50);
    rows[i] = static_cast<std::int32_t>(i);
  }
  reference_graph meaning(plain, f.file);
  meaning.n_ctx = n_ctx;
  const std::vector<double> want = meaning.run(ids, rows);
  double scale = 0;
  for (const double x : want) scale = std::max(scale, std::abs(x));
  for (const graph::graph& g : {plain, graph::optimize(plain)})
    for (const std::size_t chunk : {std::size_t{75}, std::size_t{10}, std::size_t{1}}) {
      graph_runner runner(g, f.file, device::make_cpu_device("").value(), serial_executor());
      runner.n_ctx = n_ctx;
      test_cache cache(g, dtype::f32, 128);
      const std::vector<float> got = runner.run_all(ids, cache, chunk);
      REQUIRE(got.size() == want.size());
      double worst = 0;
      for (std::size_t i = 0; i < got.size(); ++i)
        worst = std::max(worst, std::isfinite(got[i]) ? std::abs(static_cast<double>(got[i]) - want[i]) : HUGE_VAL);
      INFO("chunks of " << chunk << ", optimized " << (g.nodes.size() != plain.nodes.size()));
      CHECK(worst < 2e-5 * scale);
    }
  return want;
}

double difference(const std::vector<double>& a, const std::vector<double>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
  return worst;
}

graph::attention_attributes scores() {
  graph::attention_attributes a;
  a.n_heads = heads;
  a.n_kv_heads = kv_heads;
  a.head_dim = head;
  a.scale = 0.25F;
  return a;
}

/// Queries, keys and values out of one matrix.
struct projected {
  value q, k, v;
  projected(graph::builder& b, value x) {
    const auto rows = [&](std::int64_t first, std::int64_t n) {
      return b.matmul(x, b.weight_rows("qkv", {(heads + 2 * kv_heads) * head, width}, first * head, n * head));
    };
    q = rows(0, heads);
    k = rows(heads, kv_heads);
    v = rows(heads + kv_heads, kv_heads);
  }
};

graph::rope_attributes rotation() {
  graph::rope_attributes r;
  r.head_dim = r.n_rot = head;
  r.pairs = rope_pairs::halves;
  r.original_context = 100;
  return r;
}

}  // namespace

TEST_CASE("Soft-caps, columns, scales and norms by groups of columns") {
  const fixture f;
  check(f, build(f, [](graph::builder& b, value x) { return b.softcap(x, 2.5F); }));
  check(f, build(f, [](graph::builder& b, value x) { return b.columns(x, 17, 30); }));
  check(f, build(f, [](graph::builder& b, value x) { return b.columns(x, 3, 5, 16); }));
  check(f, build(f, [](graph::builder& b, value x) {
          const value gate = b.columns(x, 8, 1);
          return b.glu(gate, b.rms_norm(x, b.weight("norm", {width}), 1e-5F), activation::sigmoid);
        }));
  check(f, build(f, [](graph::builder& b, value x) {  // a vector as a matrix of one row
          const value rms = b.rms_norm(x, {}, 1e-5F);
          return b.glu(b.matmul(rms, b.weight("norm", {1, width})), x, activation::sigmoid);
        }));
  check(f, build(f, [](graph::builder& b, value x) { return b.scale(x, 0.5F, b.weight("factor", {1})); }));
  check(f, build(f, [](graph::builder& b, value x) { return b.rms_norm(x, b.weight("q_norm", {head}), 1e-5F, head); }));
  check(f, build(f, [](graph::builder& b, value x) { return b.rms_norm(x, {}, 1e-5F, head); }));
  // A norm without weights moves into the product behind it, too.
  const graph::graph g = build(f, [](graph::builder& b, value x) {
    return b.matmul(b.rms_norm(x, {}, 1e-5F), b.weight("router", {experts, width}));
  });
  CHECK(count(graph::optimize(g), op::rms_norm) == 0);
  check(f, g);
}

TEST_CASE("Parts of one matrix are weights of their own, and become one product again") {
  const fixture f;
  const graph::graph g = build(f, [](graph::builder& b, value x) {
    const value gate = b.matmul(x, b.weight_rows("gate_up", {2 * hidden, width}, 0, hidden));
    const value up = b.matmul(x, b.weight_rows("gate_up", {2 * hidden, width}, hidden, hidden));
    return b.matmul(b.glu(gate, up, activation::clamped_swish), b.weight("down", {width, hidden}));
  });
  check(f, g);
  CHECK(count(graph::optimize(g), op::linear) == 2);
  const auto fails = [&](std::int64_t first, std::int64_t n) {
    graph::builder b(f.file);
    return !b.weight_rows("down", {width, hidden}, first, n).valid() && !b.finish();
  };
  CHECK(!fails(0, width));
  CHECK(fails(1, width));
  CHECK(fails(-1, 2));
  CHECK(fails(3, 0));
  CHECK(fails(3, std::int64_t{1} << 62));
}

TEST_CASE("Attention with norms of heads, windows, soft-caps, sinks and temperatures") {
  const fixture f;
  const auto attend = [&](graph::attention_attributes a, bool sinks, bool norms) {
    return build(f, [&](graph::builder& b, value x) {
      projected p(b, b.rms_norm(x, b.weight("norm", {width}), 1e-5F));
      if (norms) {
        p.q = b.rms_norm(p.q, b.weight("q_norm", {head}), 1e-5F, head);
        p.k = b.rms_norm(p.k, b.weight("k_norm", {head}), 1e-4F, head);
        p.v = b.rms_norm(p.v, {}, 1e-3F, head);
      }
      const value factors = b.weight("factors", {head / 2});
      return b.attention(b.rope(p.q, rotation(), factors), b.rope(p.k, rotation(), factors), p.v, a,
                         sinks ? b.weight("sinks", {heads}) : value{});
    });
  };
  const auto plain = check(f, attend(scores(), false, false));
  const graph::graph normed = attend(scores(), false, true);
  CHECK(difference(check(f, normed), plain) > 0.1);
  CHECK(graph::optimize(normed).nodes.size() ==
        graph::optimize(attend(scores(), false, false)).nodes.size() + 2);  // the weights of two norms
  CHECK(difference(check(f, attend(scores(), true, false)), plain) > 0.1);
  graph::attention_attributes a = scores();
  a.window = 20;
  CHECK(difference(check(f, attend(a, true, true)), plain) > 0.1);
  a.softcap = 0.5F;
  check(f, attend(a, true, false));
  graph::attention_attributes warm = scores();
  warm.temperature = 0.7F;
  warm.temperature_length = 9;
  CHECK(difference(check(f, attend(warm, false, true)), check(f, attend(scores(), false, true))) > 0.1);
}

TEST_CASE("Attention without keys of its own sees what an earlier node stored") {
  const fixture f;
  const auto two = [&](bool shared) {
    return build(f, [&](graph::builder& b, value x) {
      const projected p(b, x);
      graph::attention_attributes a = scores();
      const value first =
          b.attention(b.rope(p.q, rotation()), b.rope(p.k, rotation()), b.rms_norm(p.v, {}, 1e-5F, head), a);
      const projected again(b, b.rms_norm(first, b.weight("norm", {width}), 1e-5F));
      const value q = b.rope(b.rms_norm(again.q, b.weight("q_norm", {head}), 1e-5F, head), rotation());
      if (shared) return b.attention(q, {}, {}, a);
      a.layer = 1;
      return b.attention(q, b.rope(again.k, rotation()), again.v, a);
    });
  };
  CHECK(difference(check(f, two(true)), check(f, two(false))) > 0.1);
  // Values that are the keys: what others read is not normed or rotated in place.
  check(f, build(f, [&](graph::builder& b, value x) {
          const projected p(b, x);
          const value v = b.rms_norm(p.k, {}, 1e-5F, head);
          const value k = b.rope(b.rms_norm(p.k, b.weight("k_norm", {head}), 1e-5F, head), rotation());
          return b.attention(b.rope(p.q, rotation()), k, v, scores());
        }));
}

TEST_CASE("Sequences that may grow beyond the original context rotate by the long factors") {
  const fixture f;
  const graph::graph g = build(f, [](graph::builder& b, value x) {
    const projected p(b, x);
    const value factors = b.weight("factors", {head / 2}), more = b.weight("long_factors", {head / 2});
    return b.attention(b.rope(p.q, rotation(), factors, more), b.rope(p.k, rotation(), factors, more), p.v, scores());
  });
  const auto within = check(f, g, 100);
  CHECK(within == check(f, g, 0));
  CHECK(difference(within, check(f, g, 101)) > 0.1);
}

TEST_CASE("Experts with biases, and every way of choosing and weighing them") {
  const fixture f;
  const auto chosen = [&](graph::moe_attributes a, bool biases, bool selection, bool scale) {
    a.n_expert = experts;
    a.n_used = 3;
    return build(f, [&](graph::builder& b, value x) {
      const value n = b.rms_norm(x, b.weight("norm", {width}), 1e-5F);
      graph::builder::moe_extras e;
      if (biases)
        e = {b.weight("gate_bias", {experts, hidden}),
             b.weight("up_bias", {experts, hidden}),
             b.weight("down_bias", {experts, width}),
             {},
             {}};
      if (selection) e.selection_bias = b.weight("selection", {experts});
      if (scale) e.expert_scale = b.weight("expert_scale", {experts});
      const value y = b.moe_ffn(n, b.matmul(n, b.weight("router", {experts, width})),
                                b.weight_rows("gate_up_exps", {experts, 2 * hidden, width}, 0, hidden),
                                b.weight_rows("gate_up_exps", {experts, 2 * hidden, width}, hidden, hidden),
                                b.weight("down_exps", {experts, width, hidden}), a, e);
      return b.add(x, y);
    });
  };
  graph::moe_attributes a;
  const auto plain = check(f, chosen(a, false, false, false));
  a.act = activation::clamped_swish;
  check(f, chosen(a, true, false, false));
  a.act = activation::silu;
  CHECK(difference(check(f, chosen(a, true, false, false)), plain) > 0.1);
  for (const bool renormalize : {true, false})
    for (const auto kind : {graph::router_scores::softmax, graph::router_scores::sigmoid}) {
      a.renormalize = renormalize;
      a.scores = kind;
      a.scale = 2.5F;
      const auto without = check(f, chosen(a, false, false, false));
      CHECK(difference(check(f, chosen(a, false, true, false)), without) > 0.05);
      CHECK(difference(check(f, chosen(a, true, true, true)), without) > 0.05);
    }
}

}  // namespace rowwise_steps
