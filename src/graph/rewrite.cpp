#include "flywheel/graph/rewrite.hpp"

#include <algorithm>
#include <map>
#include <utility>

namespace flywheel::inline v0::graph {
namespace {

void refresh_producers(graph& g) {
  for (std::size_t i = 0; i < g.nodes.size(); ++i)
    for (value v : g.nodes[i].outputs) g.values[v.index].producer = static_cast<std::uint32_t>(i);
}

/// Weights, ids and the like depend on nothing: in front they are ready for every merged node.
void hoist_sources(graph& g) {
  std::stable_partition(g.nodes.begin(), g.nodes.end(), [](const node& n) { return is_source(n.kind); });
  refresh_producers(g);
}

/// Takes nodes without outputs away: how the rewrites mark what they have merged into another node.
void drop_emptied(graph& g) {
  std::erase_if(g.nodes, [](const node& n) { return n.outputs.empty(); });
  refresh_producers(g);
}

bool plain_linear(const node& n) {
  if (n.kind != op::linear) return false;
  const auto& a = n.as<linear_attributes>();
  return !a.norm && !a.glu && !a.act && !a.residual;
}

/// The i-th weight of a plain linear with its bias and output.
struct product {
  value weight, bias, out;
};
product product_of(const node& n, std::size_t i) {
  const auto& a = n.as<linear_attributes>();
  return {n.inputs[a.weight_input(i)], a.biases ? n.inputs[a.bias_input(i)] : value{}, n.outputs[i]};
}

/// A plain linear of several products of x.
node linear_of(value x, const std::vector<product>& products) {
  node n{op::linear, {x}, {}, linear_attributes{}};
  auto& a = n.as<linear_attributes>();
  a.weights = static_cast<std::uint32_t>(products.size());
  a.biases = std::any_of(products.begin(), products.end(), [](const product& p) { return p.bias.valid(); });
  for (const product& p : products) n.inputs.push_back(p.weight);
  if (a.biases)
    for (const product& p : products) n.inputs.push_back(p.bias);
  for (const product& p : products) n.outputs.push_back(p.out);
  return n;
}

std::vector<product> products_of(const node& n) {
  std::vector<product> all;
  for (std::size_t i = 0; i < n.as<linear_attributes>().weights; ++i) all.push_back(product_of(n, i));
  return all;
}

/// Calls f(node, hidden, point) for every activation that a linear or the experts of a moe_ffn multiply with weights;
/// `hidden`: it is what goes into the experts' `down`. Linears that share an activation are one call, at the first.
template <class F>
void each_tap_point(const graph& g, F&& f) {
  const auto add = [&](tap_point& p, value v) {
    const std::string& name = g.weight_of(v)->name;  // the parts of a fused tensor have one name
    if (std::find(p.weights.begin(), p.weights.end(), name) == p.weights.end()) p.weights.push_back(name);
  };
  std::map<std::uint32_t, tap_point> shared;  // by activation
  for (const node& n : g.nodes)
    if (n.kind == op::linear)
      for (std::size_t i = 0; i < n.as<linear_attributes>().weights; ++i)
        add(shared[n.inputs[0].index], n.inputs[n.as<linear_attributes>().weight_input(i)]);
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    const node& n = g.nodes[i];
    if (n.kind == op::linear) {
      const auto found = shared.find(n.inputs[0].index);
      if (found == shared.end()) continue;
      found->second.cols = g.at(n.inputs[0]).cols;
      f(i, false, found->second);
      shared.erase(found);
    } else if (n.kind == op::moe_ffn) {
      using in = moe_attributes;
      tap_point x{{}, g.at(n.inputs[in::x]).cols, n.as<moe_attributes>().n_expert};
      for (const std::size_t w : {in::gate, in::up}) add(x, n.inputs[w]);
      f(i, false, x);
      tap_point hidden{{}, g.weight_of(n.inputs[in::down])->dims.cols(), x.n_experts};
      add(hidden, n.inputs[in::down]);
      f(i, true, hidden);
    }
  }
}

}  // namespace

void find_tap_points(const graph& g, std::vector<tap_point>& points) {
  each_tap_point(g, [&](std::size_t, bool, const tap_point& p) {
    if (std::find(points.begin(), points.end(), p) == points.end()) points.push_back(p);
  });
}

graph insert_taps(graph g, std::span<const tap_point> points, const std::vector<bool>& wanted) {
  std::vector<std::pair<std::size_t, node>> taps;  // before which node
  std::map<std::uint32_t, value> tapped;           // activation -> what its tap gives
  each_tap_point(graph(g), [&](std::size_t at, bool hidden, const tap_point& p) {
    const auto point = static_cast<std::uint32_t>(std::find(points.begin(), points.end(), p) - points.begin());
    if (point == points.size() || !wanted[point]) return;
    node& n = g.nodes[at];
    if (n.kind == op::moe_ffn) {
      (hidden ? n.as<moe_attributes>().tap_hidden : n.as<moe_attributes>().tap_x) = point;
      return;
    }
    const value x = n.inputs[0], y{static_cast<std::uint32_t>(g.values.size())};
    g.values.push_back(g.at(x));
    tapped[x.index] = y;
    taps.emplace_back(at, node{op::tap, {x}, {y}, tap_attributes{point}});
  });
  for (node& n : g.nodes)
    if (n.kind == op::linear)
      if (const auto found = tapped.find(n.inputs[0].index); found != tapped.end()) n.inputs[0] = found->second;
  for (auto t = taps.rbegin(); t != taps.rend(); ++t)
    g.nodes.insert(g.nodes.begin() + static_cast<std::ptrdiff_t>(t->first), std::move(t->second));
  refresh_producers(g);
  return g;
}

graph group_linears(graph g) {
  hoist_sources(g);
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    if (!plain_linear(g.nodes[i]) || g.nodes[i].outputs.empty()) continue;
    const value x = g.nodes[i].inputs[0];
    std::vector<product> products = products_of(g.nodes[i]);
    for (std::size_t j = i + 1; j < g.nodes.size(); ++j) {
      node& other = g.nodes[j];
      if (!plain_linear(other) || other.outputs.empty() || !(other.inputs[0] == x)) continue;
      for (const product& p : products_of(other)) products.push_back(p);
      other.outputs.clear();
    }
    g.nodes[i] = linear_of(x, products);
  }
  drop_emptied(g);
  return g;
}

graph fuse_glu(graph g) {
  hoist_sources(g);
  const std::vector<std::uint32_t> uses = g.use_counts();
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    if (g.nodes[i].kind != op::glu) continue;
    const value gate = g.nodes[i].inputs[0], up = g.nodes[i].inputs[1];
    const std::uint32_t source = g.at(gate).producer;
    if (gate == up || source != g.at(up).producer || !plain_linear(g.nodes[source])) continue;
    if (uses[gate.index] != 1 || uses[up.index] != 1 || g.at(gate).cols != g.at(up).cols) continue;
    std::vector<product> pair(2), rest;
    for (const product& p : products_of(g.nodes[source]))
      (p.out == gate ? pair[0] : p.out == up ? pair[1] : rest.emplace_back()) = p;
    const value x = g.nodes[source].inputs[0], out = g.nodes[i].outputs[0];
    node fused = linear_of(x, pair);
    fused.outputs = {out};
    fused.as<linear_attributes>().glu = g.nodes[i].as<glu_attributes>().act;
    g.nodes[i] = std::move(fused);
    if (rest.empty())
      g.nodes[source].outputs.clear();
    else
      g.nodes[source] = linear_of(x, rest);
  }
  drop_emptied(g);
  return remove_unused(std::move(g));
}

graph fuse_activation(graph g) {
  hoist_sources(g);
  const std::vector<std::uint32_t> uses = g.use_counts();
  for (node& n : g.nodes) {
    if (n.kind != op::activate) continue;
    const value x = n.inputs[0];
    node& source = g.nodes[g.at(x).producer];
    if (uses[x.index] != 1 || !plain_linear(source) || source.outputs.size() != 1) continue;
    node fused = source;
    fused.as<linear_attributes>().act = n.as<activate_attributes>().act;
    fused.outputs = n.outputs;
    source.outputs.clear();
    n = std::move(fused);
  }
  drop_emptied(g);
  return g;
}

graph fuse_residual(graph g) {
  hoist_sources(g);
  const std::vector<std::uint32_t> uses = g.use_counts();
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    if (g.nodes[i].kind != op::add) continue;
    const value a = g.nodes[i].inputs[0], b = g.nodes[i].inputs[1];
    for (const auto& [sum, other] : {std::pair{b, a}, std::pair{a, b}}) {
      const node& source = g.nodes[g.at(sum).producer];
      if (uses[sum.index] != 1 || source.outputs.size() != 1) continue;
      node fused = source;
      if (source.kind == op::linear && !source.as<linear_attributes>().residual &&
          !source.as<linear_attributes>().act) {
        fused.as<linear_attributes>().residual = true;
        fused.inputs.push_back(other);
      } else if (source.kind == op::moe_ffn && !source.inputs[moe_attributes::residual].valid()) {
        fused.inputs[moe_attributes::residual] = other;
      } else {
        continue;
      }
      fused.outputs = g.nodes[i].outputs;
      g.nodes[g.at(sum).producer].outputs.clear();
      g.nodes[i] = std::move(fused);
      break;
    }
  }
  drop_emptied(g);
  return remove_unused(std::move(g));
}

graph fuse_norm(graph g) {
  hoist_sources(g);
  const std::vector<std::uint32_t> uses = g.use_counts();
  for (node& n : g.nodes) {
    if (n.kind != op::linear || n.as<linear_attributes>().norm) continue;
    const value x = n.inputs[0];
    node& norm = g.nodes[g.at(x).producer];
    if (norm.kind != op::rms_norm || norm.as<norm_attributes>().group != 0 || uses[x.index] != 1) continue;
    auto& a = n.as<linear_attributes>();
    n.inputs[0] = norm.inputs[0];
    n.inputs.insert(n.inputs.begin() + static_cast<std::ptrdiff_t>(a.norm_input()), norm.inputs[1]);
    a.norm = norm.as<norm_attributes>();
    norm.outputs.clear();
  }
  drop_emptied(g);
  return remove_unused(std::move(g));
}

graph fuse_rope(graph g) {
  using in = attention_attributes;
  hoist_sources(g);
  const std::vector<std::uint32_t> uses = g.use_counts();
  for (node& n : g.nodes) {
    if (n.kind != op::attention || n.as<attention_attributes>().rope) continue;
    // The fused node rotates in place, so nobody else may read the plain queries and keys either.
    const auto rotation_of = [&](value v) -> node* {
      node& source = g.nodes[g.at(v).producer];
      return source.kind == op::rope && uses[v.index] == 1 && uses[source.inputs[0].index] == 1 ? &source : nullptr;
    };
    node* q = rotation_of(n.inputs[in::q]);
    node* k = n.inputs[in::k].valid() ? rotation_of(n.inputs[in::k]) : nullptr;
    if (!q || (n.inputs[in::k].valid() && !k)) continue;
    if (k && (!(q->as<rope_attributes>() == k->as<rope_attributes>()) || !(q->inputs[1] == k->inputs[1]) ||
              !(q->inputs[2] == k->inputs[2])))
      continue;
    n.as<attention_attributes>().rope = q->as<rope_attributes>();
    n.inputs[in::rope_factors] = q->inputs[1];
    n.inputs[in::long_rope_factors] = q->inputs[2];
    n.inputs[in::q] = q->inputs[0];
    q->outputs.clear();
    if (!k) continue;
    n.inputs[in::k] = k->inputs[0];
    k->outputs.clear();
  }
  drop_emptied(g);
  return remove_unused(std::move(g));
}

graph fuse_head_norms(graph g) {
  using in = attention_attributes;
  hoist_sources(g);
  const std::vector<std::uint32_t> uses = g.use_counts();
  for (node& n : g.nodes) {
    if (n.kind != op::attention) continue;
    auto& a = n.as<attention_attributes>();
    if (!a.causal) continue;
    for (std::size_t i = 0; i < 3; ++i) {
      const value v = n.inputs[i];
      if (!v.valid() || a.norm_eps[i]) continue;
      node& norm = g.nodes[g.at(v).producer];
      // In place, as with fuse_rope; and a rotation that is still a node of its own comes after the norm.
      if (norm.kind != op::rms_norm || norm.as<norm_attributes>().group != a.head_dim || uses[v.index] != 1 ||
          uses[norm.inputs[0].index] != 1)
        continue;
      a.norm_eps[i] = norm.as<norm_attributes>().eps;
      n.inputs[in::q_norm + i] = norm.inputs[1];
      n.inputs[i] = norm.inputs[0];
      norm.outputs.clear();
    }
  }
  drop_emptied(g);
  return remove_unused(std::move(g));
}

graph remove_unused(graph g) {
  std::vector<bool> needed(g.values.size(), false);
  for (value v : g.outputs) needed[v.index] = true;
  std::vector<bool> keep(g.nodes.size(), false);
  for (std::size_t i = g.nodes.size(); i-- > 0;) {
    const node& n = g.nodes[i];
    keep[i] = std::any_of(n.outputs.begin(), n.outputs.end(), [&](value v) { return needed[v.index]; });
    if (keep[i])
      for (value v : n.inputs)
        if (v.valid()) needed[v.index] = true;
  }
  graph out;
  std::vector<value> renamed(g.values.size());
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    if (!keep[i]) continue;
    node n = std::move(g.nodes[i]);
    for (value& v : n.inputs)
      if (v.valid()) v = renamed[v.index];
    for (value& v : n.outputs) {
      renamed[v.index] = {static_cast<std::uint32_t>(out.values.size())};
      value_info info = g.values[v.index];
      info.producer = static_cast<std::uint32_t>(out.nodes.size());
      out.values.push_back(info);
      v = renamed[v.index];
    }
    if (n.kind == op::weight) {
      auto& a = n.as<weight_attributes>();
      out.weights.push_back(g.weights[a.index]);
      a.index = static_cast<std::uint32_t>(out.weights.size() - 1);
    }
    out.nodes.push_back(std::move(n));
  }
  for (value v : g.outputs) out.outputs.push_back(renamed[v.index]);
  return out;
}

graph optimize(graph g) {
  return fuse_head_norms(
      fuse_rope(fuse_norm(fuse_residual(fuse_activation(fuse_glu(group_linears(remove_unused(std::move(g)))))))));
}

}  // namespace flywheel::inline v0::graph
