// Building, checking, rewriting and planning graphs.
#include "flywheel/graph/graph.hpp"

#include "flywheel/graph/builder.hpp"
#include "flywheel/graph/plan.hpp"
#include "flywheel/graph/rewrite.hpp"
#include "support/catch.hpp"
#include "support/reference_graph.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;
using graph::op;

namespace {

/// A file with a few matrices and vectors to build with.
struct fixture {
  temp_folder folder;
  io::archive file;
  fixture() {
    tiny_random random(5);
    std::vector<tiny_tensor> tensors;
    const auto add = [&](const char* name, shape dims) {
      tiny_tensor t{{name, dtype::f32, dims, 0}, {}};
      for (std::int64_t i = 0; i < dims.elements(); ++i) t.values.push_back(random.normal() * 0.3F);
      tensors.push_back(t);
    };
    add("table", {20, 16});
    add("norm", {16});
    for (const char* name : {"wq", "wk", "wv", "wo"}) add(name, {16, 16});
    add("bias", {16});
    add("gate", {24, 16});
    add("up", {24, 16});
    add("down", {16, 24});
    add("router", {3, 16});
    add("gates", {3, 8, 16});
    add("ups", {3, 8, 16});
    add("downs", {3, 16, 8});
    write_tensors(folder / "w.gguf", io::metadata{}, tensors);
    file = io::archive::open(folder / "w.gguf").value();
  }
};

graph::attention_attributes attention_of(std::int64_t heads) {
  graph::attention_attributes a;
  a.n_heads = heads;
  a.n_kv_heads = heads;
  a.head_dim = 16 / heads;
  a.scale = 0.5F;
  return a;
}

graph::rope_attributes rope_of(std::int64_t head_dim) {
  graph::rope_attributes a;
  a.head_dim = a.n_rot = head_dim;
  return a;
}

/// One block with attention, a gated layer and experts, its parts in an unusual order.
graph::graph block(const fixture& f) {
  graph::builder b(f.file);
  graph::value x = b.embed(b.weight("table", {20, 16}), b.token_ids());
  const graph::value a = b.rms_norm(x, b.weight("norm", {16}), 1e-5F);
  const graph::value v = b.matmul(a, b.weight("wv", {16, 16}));
  const graph::value k = b.rope(b.matmul(a, b.weight("wk", {16, 16})), rope_of(8));
  const graph::value q = b.rope(b.matmul(a, b.weight("wq", {16, 16}), b.weight("bias", {16})), rope_of(8));
  x = b.add(b.matmul(b.attention(q, k, v, attention_of(2)), b.weight("wo", {16, 16})), x);
  const graph::value n = b.rms_norm(x, b.weight("norm", {16}), 1e-5F);
  const graph::value up = b.matmul(n, b.weight("up", {24, 16}));
  const graph::value gate = b.matmul(n, b.weight("gate", {24, 16}));
  const graph::value router = b.matmul(n, b.weight("router", {3, 16}));
  graph::moe_attributes moe;
  moe.n_expert = 3;
  moe.n_used = 2;
  moe.renormalize = false;
  const graph::value experts = b.moe_ffn(n, router, b.weight("gates", {3, 8, 16}), b.weight("ups", {3, 8, 16}),
                                         b.weight("downs", {3, 16, 8}), moe);
  x = b.add(x, experts);
  x = b.add(x, b.matmul(b.glu(gate, up, activation::gelu_tanh), b.weight("down", {16, 24})));
  b.output(b.scale(b.select_outputs(x), 3.0F));
  return b.finish().value();
}

/// With every tap there can be.
graph::graph tapped(const graph::graph& g) {
  std::vector<graph::tap_point> points;
  graph::find_tap_points(g, points);
  return graph::insert_taps(g, points, std::vector<bool>(points.size(), true));
}

std::size_t count(const graph::graph& g, op kind) {
  std::size_t n = 0;
  for (const graph::node& node : g.nodes) n += node.kind == kind;
  return n;
}

const graph::node* first(const graph::graph& g, op kind) {
  for (const graph::node& node : g.nodes)
    if (node.kind == kind) return &node;
  return nullptr;
}

}  // namespace

TEST_CASE("A builder keeps the first error and names what does not fit") {
  const fixture f;
  graph::builder missing(f.file);
  missing.output(missing.embed(missing.weight("no.such", {20, 16}), missing.token_ids()));
  const auto m = missing.finish();
  REQUIRE(!m);
  CHECK(m.error().code == errc::malformed);
  CHECK(m.error().where == "no.such");

  graph::builder extents(f.file);
  extents.weight("table", {21, 16});
  const auto e = extents.finish();
  REQUIRE(!e);
  CHECK(e.error().message.find("[20, 16]") != std::string::npos);

  graph::builder wrong(f.file);
  const graph::value x = wrong.embed(wrong.weight("table", {20, 16}), wrong.token_ids());
  wrong.output(wrong.matmul(x, wrong.weight("down", {16, 24})));
  const auto w = wrong.finish();
  REQUIRE(!w);
  CHECK(w.error().code == errc::invalid_argument);
  CHECK(w.error().message.find("down") != std::string::npos);
  CHECK(!wrong.optional_weight("no.such", {1}).valid());
}

TEST_CASE("Operations refuse extents that cannot be") {
  const fixture f;
  const auto fails = [&](auto&& build) {
    graph::builder b(f.file);
    const graph::value x = b.embed(b.weight("table", {20, 16}), b.token_ids());
    b.output(build(b, x));
    return !b.finish();
  };
  using graph::builder;
  using graph::value;
  CHECK(!fails([](builder&, value x) { return x; }));
  CHECK(fails([](builder& b, value x) { return b.rms_norm(x, b.weight("wq", {16, 16}), 1e-5F); }));
  CHECK(fails([](builder& b, value x) { return b.rope(x, rope_of(5)); }));
  CHECK(fails([](builder& b, value x) { return b.rope(x, rope_of(32)); }));
  CHECK(fails([](builder& b, value x) { return b.attention(x, x, x, attention_of(3)); }));
  CHECK(fails([](builder& b, value x) {
    auto a = attention_of(4);
    a.n_kv_heads = 3;
    return b.attention(x, x, x, a);
  }));
  const auto bidirectional = [](auto&& change) {
    auto a = attention_of(2);
    a.causal = false;
    change(a);
    return [a](builder& b, value x) { return b.attention(x, x, x, a); };
  };
  CHECK(!fails(bidirectional([](auto&) {})));
  CHECK(fails(bidirectional([](auto& a) { a.window = 4; })));
  CHECK(fails(bidirectional([](auto& a) { a.temperature = 1, a.temperature_length = 8; })));
  CHECK(fails([](builder& b, value x) { return b.layer_norm(x, b.weight("up", {24, 16}), {}, 1e-5F); }));
  CHECK(fails([](builder& b, value x) { return b.layer_norm(x, {}, b.weight("bias", {16}), 1e-5F); }));
  CHECK(fails([](builder& b, value x) { return b.embed(b.weight("table", {20, 16}), x); }));
  CHECK(fails([](builder& b, value) { return b.activate(b.positions(), activation::silu); }));
  CHECK(fails([](builder& b, value x) { return b.add(x, b.select_outputs(x)); }));
  CHECK(fails([](builder& b, value x) { return b.select_outputs(b.select_outputs(x)); }));
  CHECK(fails([](builder& b, value x) { return b.glu(x, b.matmul(x, b.weight("gate", {24, 16})), activation::silu); }));
  CHECK(fails([](builder& b, value x) {
    graph::moe_attributes moe;
    moe.n_expert = 3;
    moe.n_used = 4;
    return b.moe_ffn(x, b.matmul(x, b.weight("router", {3, 16})), b.weight("gates", {3, 8, 16}),
                     b.weight("ups", {3, 8, 16}), b.weight("downs", {3, 16, 8}), moe);
  }));
}

TEST_CASE("Rewrites fuse what they promise") {
  const fixture f;
  const graph::graph plain = block(f);
  REQUIRE(count(plain, op::linear) == 8);

  const graph::graph grouped = graph::group_linears(plain);
  CHECK(graph::validate(grouped));
  CHECK(count(grouped, op::linear) == 4);  // QKV, output, gate + up + router, down
  CHECK(first(grouped, op::linear)->as<graph::linear_attributes>().weights == 3);
  CHECK(first(grouped, op::linear)->as<graph::linear_attributes>().biases);

  const graph::graph gated = graph::fuse_glu(grouped);
  CHECK(graph::validate(gated));
  CHECK(count(gated, op::glu) == 0);
  CHECK(count(gated, op::linear) == 5);  // the router stays on its own

  const graph::graph summed = graph::fuse_residual(gated);
  CHECK(graph::validate(summed));
  CHECK(count(summed, op::add) == 0);
  CHECK(first(summed, op::moe_ffn)->inputs[graph::moe_attributes::residual].valid());

  const graph::graph normed = graph::fuse_norm(summed);
  CHECK(graph::validate(normed));
  CHECK(count(normed, op::rms_norm) == 1);  // that of the feed-forward has three users

  const graph::graph rotated = graph::fuse_rope(normed);
  CHECK(graph::validate(rotated));
  CHECK(count(rotated, op::rope) == 0);
  CHECK(first(rotated, op::attention)->as<graph::attention_attributes>().rope.has_value());
  CHECK(rotated.to_string() == graph::optimize(plain).to_string());
}

TEST_CASE("Rewrites keep the meaning") {
  const fixture f;
  const graph::graph plain = block(f);
  const std::int32_t ids[] = {3, 1, 4, 1, 5, 9, 2, 6}, rows[] = {0, 3, 7};
  const auto want = reference_graph(plain, f.file).run(ids, rows);
  REQUIRE(want.size() == 48);
  for (auto rewrite : {graph::group_linears, graph::fuse_residual, graph::fuse_norm, graph::fuse_rope,
                       graph::remove_unused, graph::optimize}) {
    const auto got = reference_graph(rewrite(plain), f.file).run(ids, rows);
    REQUIRE(got.size() == want.size());
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == Approx(want[i]).epsilon(1e-12));
  }
}

TEST_CASE("An activation moves into the product before it, which then takes no residual") {
  const fixture f;
  const auto build = [&](bool used_twice) {
    graph::builder b(f.file);
    const graph::value x =
        b.add(b.embed(b.weight("table", {20, 16}), b.token_ids()), b.embed(b.weight("wq", {16, 16}), b.positions()));
    const graph::value y = b.matmul(x, b.weight("wo", {16, 16}), b.weight("bias", {16}));
    const graph::value z = b.add(x, b.activate(y, activation::gelu_tanh));
    b.output(b.layer_norm(used_twice ? b.add(z, y) : z, b.weight("norm", {16}), b.weight("bias", {16}), 1e-5F));
    return b.finish().value();
  };
  const std::int32_t ids[] = {3, 1, 4, 1}, rows[] = {0, 1, 2, 3};
  for (const bool used_twice : {false, true}) {
    const graph::graph plain = build(used_twice), fused = graph::optimize(plain);
    CHECK(graph::validate(fused));
    CHECK(count(fused, op::activate) == (used_twice ? 1 : 0));
    CHECK(first(fused, op::linear)->as<graph::linear_attributes>().act.has_value() != used_twice);
    CHECK(!first(fused, op::linear)->as<graph::linear_attributes>().residual);
    const auto want = reference_graph(plain, f.file).run(ids, rows),
               got = reference_graph(fused, f.file).run(ids, rows);
    for (std::size_t i = 0; i < want.size(); ++i) CHECK(got[i] == Approx(want[i]).epsilon(1e-12));
  }
}

TEST_CASE("Values with other uses are not fused away") {
  const fixture f;
  graph::builder b(f.file);
  const graph::value x = b.embed(b.weight("table", {20, 16}), b.token_ids());
  const graph::value n = b.rms_norm(x, b.weight("norm", {16}), 1e-5F);
  const graph::value y = b.matmul(n, b.weight("wq", {16, 16}));
  const graph::value q = b.rope(y, rope_of(8)), k = b.rope(y, rope_of(8));
  const graph::value a = b.attention(q, k, y, attention_of(2));
  b.output(b.add(a, n));
  const graph::graph g = graph::optimize(b.finish().value());
  CHECK(graph::validate(g));
  CHECK(count(g, op::rms_norm) == 1);
  CHECK(count(g, op::rope) == 2);
  CHECK(count(g, op::add) == 1);
}

TEST_CASE("A tensor used twice is one weight, an unused one none") {
  const fixture f;
  graph::builder b(f.file);
  const graph::value table = b.weight("table", {20, 16});
  b.weight("wo", {16, 16});
  CHECK(b.weight("table", {20, 16}) == table);
  b.output(b.matmul(b.embed(table, b.token_ids()), table));
  const graph::graph g = graph::remove_unused(b.finish().value());
  REQUIRE(g.weights.size() == 1);
  CHECK(g.weights[0].name == "table");
}

TEST_CASE("Validation finds broken graphs") {
  const fixture f;
  const graph::graph good = block(f);
  REQUIRE(graph::validate(good));
  graph::graph g = good;
  std::swap(g.nodes[1], g.nodes.back());
  CHECK(!graph::validate(g));
  g = good;
  g.values.back().cols += 1;
  CHECK(!graph::validate(g));
  g = good;
  g.outputs.push_back({12345});
  CHECK(!graph::validate(g));
  g = good;
  g.nodes.back().attributes = graph::norm_attributes{};
  CHECK(!graph::validate(g));
  g = good;
  g.nodes.back().inputs.clear();
  CHECK(!graph::validate(g));
}

TEST_CASE("No two values that are alive together share memory") {
  const fixture f;
  for (const graph::graph& g : {block(f), graph::optimize(block(f)), graph::optimize(tapped(block(f)))}) {
    const auto plan = graph::plan_memory(g, 33, 5).value();
    std::vector<std::size_t> numbers_of(g.values.size());  // a tap gives what it takes
    std::vector<std::size_t> begin(g.values.size(), 0), end(g.values.size(), 0), bytes(g.values.size(), 0);
    std::size_t sum = 0;
    for (std::size_t i = 0; i < g.nodes.size(); ++i) {
      for (graph::value v : g.nodes[i].outputs) {
        numbers_of[v.index] = g.nodes[i].kind == op::tap ? numbers_of[g.nodes[i].inputs[0].index] : v.index;
        begin[v.index] = end[v.index] = i;
        bytes[v.index] =
            static_cast<std::size_t>(g.at(v).cols) * 4 * (g.at(v).rows == graph::row_kind::outputs ? 5 : 33);
      }
      for (graph::value v : g.nodes[i].inputs)
        if (v.valid()) end[v.index] = end[numbers_of[v.index]] = i;
    }
    for (std::size_t a = 0; a < g.values.size(); ++a) {
      if (plan.offsets[a] == graph::memory_plan::none) continue;
      if (numbers_of[a] != a) {
        CHECK(plan.offsets[a] == plan.offsets[numbers_of[a]]);
        continue;
      }
      sum += bytes[a];
      CHECK(plan.offsets[a] % 64 == 0);
      CHECK(plan.offsets[a] + bytes[a] <= plan.arena_bytes);
      for (std::size_t b = 0; b < a; ++b) {
        if (plan.offsets[b] == graph::memory_plan::none || numbers_of[b] != b) continue;
        const bool apart =
            plan.offsets[a] + bytes[a] <= plan.offsets[b] || plan.offsets[b] + bytes[b] <= plan.offsets[a];
        // The only sharing allowed: a result over a residual that is last used where the result is made.
        const bool handed_over = end[a] <= begin[b] || end[b] <= begin[a];
        CHECK((apart || handed_over));
        if (!apart && end[std::min(a, b)] == begin[std::max(a, b)]) {
          const graph::node& n = g.nodes[begin[std::max(a, b)]];
          CHECK((n.kind == op::linear || n.kind == op::moe_ffn));
        }
      }
    }
    CHECK(plan.arena_bytes < sum);
    for (graph::value v : g.outputs) CHECK(plan.offsets[v.index] == graph::memory_plan::none);
  }
  CHECK(!graph::plan_memory(block(f), 0, 1));
  CHECK(!graph::plan_memory(block(f), 1, std::int64_t{1} << 40));
}

TEST_CASE("Taps keep activations in memory, linears grouped, and the rest of a graph as it is") {
  const fixture f;
  const graph::graph plain = block(f);
  std::vector<graph::tap_point> points;
  graph::find_tap_points(plain, points);
  const std::size_t found = points.size();
  graph::find_tap_points(plain, points);
  CHECK(points.size() == found);
  REQUIRE(found > 1);

  const graph::graph untouched = graph::insert_taps(plain, points, std::vector<bool>(found, false));
  CHECK(untouched.to_string() == plain.to_string());

  REQUIRE(graph::validate(tapped(plain)));
  const graph::graph optimized = graph::optimize(tapped(plain));
  REQUIRE(graph::validate(optimized));
  CHECK(count(optimized, op::tap) == found - 2);  // the experts' points are the node's own
  CHECK(first(optimized, op::moe_ffn)->as<graph::moe_attributes>().tap_x);
  CHECK(first(optimized, op::moe_ffn)->as<graph::moe_attributes>().tap_hidden);
  CHECK(count(optimized, op::linear) == count(graph::optimize(plain), op::linear));
  CHECK(optimized.to_string().find("tap point 0 ") != std::string::npos);

  // x goes into a product and is added to it: with a tap between, the sum must not write over what the product reads.
  graph::builder b(f.file);
  const graph::value x = b.embed(b.weight("table", {20, 16}), b.token_ids());
  b.output(b.select_outputs(b.add(b.matmul(x, b.weight("wq", {16, 16})), x)));
  const graph::graph g = graph::optimize(tapped(b.finish().value()));
  const graph::node* sum = first(g, op::linear);
  REQUIRE(sum->as<graph::linear_attributes>().residual);
  const auto plan = graph::plan_memory(g, 33, 5).value();
  CHECK(plan.offsets[sum->outputs[0].index] != plan.offsets[sum->inputs[0].index]);
}

TEST_CASE("A graph prints one line per operation") {
  const fixture f;
  const std::string text = graph::optimize(block(f)).to_string();
  CHECK(text.find("linear norm") != std::string::npos);
  CHECK(text.find("attention layer 0, 2/2 heads of 8, rope") != std::string::npos);
  CHECK(text.find("return %") != std::string::npos);
}
