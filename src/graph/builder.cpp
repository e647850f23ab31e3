#include "flywheel/graph/builder.hpp"

namespace flywheel::inline v0::graph {

void builder::fail(error e) {
  if (!error_) error_ = std::move(e);
}

value builder::append(op kind, std::vector<value> inputs, op_attributes attributes) {
  if (error_) return {};
  node n{kind, std::move(inputs), {}, std::move(attributes)};
  auto facts = infer(graph_, n);
  if (!facts) {
    fail(std::move(facts).error());
    return {};
  }
  for (value_info& info : *facts) {
    info.producer = static_cast<std::uint32_t>(graph_.nodes.size());
    n.outputs.push_back({static_cast<std::uint32_t>(graph_.values.size())});
    graph_.values.push_back(info);
  }
  const value first = n.outputs.front();
  graph_.nodes.push_back(std::move(n));
  return first;
}

value builder::optional_weight(const std::string& name, std::initializer_list<std::int64_t> dims) {
  if (error_ || !file_->find(name)) return {};
  return weight(name, dims);
}

value builder::weight(const std::string& name, std::initializer_list<std::int64_t> dims) {
  if (error_) return {};
  for (std::size_t i = 0; i < graph_.nodes.size(); ++i)  // a tensor used twice (tied embeddings) is one node
    if (graph_.nodes[i].kind == op::weight &&
        graph_.weights[graph_.nodes[i].as<weight_attributes>().index].name == name)
      return graph_.nodes[i].outputs.front();
  const io::tensor_info* info = file_->find(name);
  const shape want(dims);
  if (!info) {
    fail({errc::malformed, "the model lacks a tensor that its architecture needs, " + want.to_string(), name});
    return {};
  }
  if (!(info->dims == want)) {
    fail({errc::malformed,
          "the tensor is " + info->dims.to_string() + " where the model's metadata ask for " + want.to_string(), name});
    return {};
  }
  const auto index = static_cast<std::uint32_t>(graph_.weights.size());
  graph_.weights.push_back({name, info->type, info->dims});
  return append(op::weight, {}, weight_attributes{index});
}

value builder::token_ids() { return append(op::token_ids, {}, no_attributes{}); }
value builder::embed(value table, value ids) { return append(op::embed, {table, ids}, no_attributes{}); }
value builder::rms_norm(value x, value weight, float eps) {
  return append(op::rms_norm, {x, weight}, norm_attributes{eps});
}
value builder::rope(value x, const rope_attributes& attributes, value factors) {
  return append(op::rope, {x, factors}, attributes);
}
value builder::attention(value q, value k, value v, const attention_attributes& attributes) {
  return append(op::attention, {q, k, v, value{}}, attributes);
}
value builder::glu(value gate, value up, activation act) { return append(op::glu, {gate, up}, glu_attributes{act}); }
value builder::add(value a, value b) { return append(op::add, {a, b}, no_attributes{}); }
value builder::scale(value x, float factor) { return append(op::scale, {x}, scale_attributes{factor}); }
value builder::select_outputs(value x) { return append(op::select_outputs, {x}, no_attributes{}); }

value builder::matmul(value x, value weight, value bias) {
  linear_attributes a;
  a.biases = bias.valid();
  return append(op::linear, a.biases ? std::vector<value>{x, weight, bias} : std::vector<value>{x, weight}, a);
}

value builder::moe_ffn(value x, value router, value gate, value up, value down, const moe_attributes& attributes) {
  return append(op::moe_ffn, {x, router, gate, up, down, value{}}, attributes);
}

void builder::output(value v) {
  if (!error_) graph_.outputs.push_back(v);
}

result<graph> builder::finish() {
  if (error_) return *error_;
  if (auto ok = validate(graph_); !ok) return std::move(ok).error();
  return std::move(graph_);
}

}  // namespace flywheel::inline v0::graph
