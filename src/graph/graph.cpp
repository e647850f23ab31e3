#include "flywheel/graph/graph.hpp"

namespace flywheel::inline v0::graph {
namespace {

constexpr std::string_view op_names[] = {
#define FLYWHEEL_OP(name, attribute_struct) #name,
#include "flywheel/graph/ops.inc"
#undef FLYWHEEL_OP
};

std::string extent(const graph& g, value v) {
  if (!v.valid()) return "-";
  const value_info& info = g.at(v);
  std::string text = "%" + std::to_string(v.index);
  if (const weight_info* w = g.weight_of(v))
    return text + " " + w->name + (w->first_row > 0 ? " from row " + std::to_string(w->first_row) : "");
  text += info.rows == row_kind::tokens ? " [tokens" : " [outputs";
  if (info.cols != 0) text += ", " + std::to_string(info.cols);
  return text + "]";
}

std::string details(const node& n) {
  std::string text;
  if (n.kind == op::linear) {
    const auto& a = n.as<linear_attributes>();
    if (a.norm) text += " norm";
    if (a.glu) text += " glu";
    if (a.act) text += " act";
    if (a.residual) text += " residual";
  } else if (n.kind == op::attention) {
    const auto& a = n.as<attention_attributes>();
    text += " layer " + std::to_string(a.layer) + ", " + std::to_string(a.n_heads) + "/" +
            std::to_string(a.n_kv_heads) + " heads of " + std::to_string(a.head_dim);
    if (a.window > 0) text += ", window " + std::to_string(a.window);
    if (a.norm_eps[0]) text += ", norm";
    if (a.rope) text += ", rope";
    if (!a.causal) text += ", not causal";
  } else if (n.kind == op::tap) {
    text += " point " + std::to_string(n.as<tap_attributes>().point);
  }
  return text;
}

}  // namespace

std::string_view to_string(op kind) noexcept { return op_names[static_cast<std::size_t>(kind)]; }

const weight_info* graph::weight_of(value v) const noexcept {
  if (!v.valid() || v.index >= values.size()) return nullptr;
  const node& producer = nodes[at(v).producer];
  return producer.kind == op::weight ? &weights[producer.as<weight_attributes>().index] : nullptr;
}

std::vector<std::uint32_t> graph::use_counts() const {
  std::vector<std::uint32_t> counts(values.size(), 0);
  for (const node& n : nodes)
    for (value v : n.inputs)
      if (v.valid()) ++counts[v.index];
  for (value v : outputs) ++counts[v.index];
  return counts;
}

std::string graph::to_string() const {
  std::string text;
  for (const node& n : nodes) {
    if (n.kind == op::weight) continue;
    for (std::size_t i = 0; i < n.outputs.size(); ++i) text += (i ? ", " : "") + extent(*this, n.outputs[i]);
    text += " = " + std::string(flywheel::graph::to_string(n.kind)) + details(n) + " (";
    for (std::size_t i = 0; i < n.inputs.size(); ++i) text += (i ? ", " : "") + extent(*this, n.inputs[i]);
    text += ")\n";
  }
  for (value v : outputs) text += "return " + extent(*this, v) + "\n";
  return text;
}

result<void> validate(const graph& g) {
  const auto broken = [](std::string what) { return error{errc::invalid_argument, std::move(what), "graph"}; };
  std::vector<bool> ready(g.values.size(), false);
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    const node& n = g.nodes[i];
    const std::string name(to_string(n.kind));
    for (value v : n.inputs)
      if (v.valid() && (v.index >= g.values.size() || !ready[v.index]))
        return broken("node " + std::to_string(i) + " (" + name + ") uses a value before it is produced");
    auto expected = infer(g, n);
    if (!expected) return std::move(expected).error();
    if (expected->size() != n.outputs.size())
      return broken("node " + std::to_string(i) + " (" + name + ") has a wrong number of outputs");
    for (std::size_t o = 0; o < n.outputs.size(); ++o) {
      const value v = n.outputs[o];
      if (!v.valid() || v.index >= g.values.size() || ready[v.index])
        return broken("node " + std::to_string(i) + " (" + name + ") produces a value that is not its own");
      const value_info& is = g.at(v);
      const value_info& should = (*expected)[o];
      if (is.type != should.type || is.rows != should.rows || is.cols != should.cols || is.producer != i)
        return broken("node " + std::to_string(i) + " (" + name + ") declares an output of the wrong extent");
      ready[v.index] = true;
    }
  }
  for (value v : g.outputs)
    if (!v.valid() || v.index >= g.values.size() || !ready[v.index]) return broken("a result is never produced");
  return {};
}

}  // namespace flywheel::inline v0::graph
