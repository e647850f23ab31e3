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

const io::tensor_info* builder::find(const std::string& name, const shape& want) {
  if (error_) return nullptr;
  const io::tensor_info* info = file_->find(name);
  if (!info) {
    fail({errc::malformed, "the model lacks a tensor that its architecture needs, " + want.to_string(), name});
  } else if (!(info->dims == want) && !(want.rank() == 2 && want[0] == 1 && info->dims == shape{want[1]})) {
    fail({errc::malformed,
          "the tensor is " + info->dims.to_string() + " where the model's metadata ask for " + want.to_string(), name});
    return nullptr;
  }
  return info;
}

value builder::append_weight(weight_info info) {
  for (const node& n : graph_.nodes)  // a tensor used twice (tied embeddings) is one node
    if (n.kind == op::weight && graph_.weights[n.as<weight_attributes>().index].same_rows(info))
      return n.outputs.front();
  const auto index = static_cast<std::uint32_t>(graph_.weights.size());
  graph_.weights.push_back(std::move(info));
  return append(op::weight, {}, weight_attributes{index});
}

value builder::weight(const std::string& name, std::initializer_list<std::int64_t> dims) {
  const shape want(dims);
  const io::tensor_info* info = find(name, want);
  return info ? append_weight({name, info->type, want, 0}) : value{};
}

value builder::weight_rows(const std::string& name, std::initializer_list<std::int64_t> dims, std::int64_t first,
                           std::int64_t count) {
  const io::tensor_info* info = find(name, shape(dims));
  if (!info) return {};
  const std::size_t rank = dims.size();
  const std::int64_t rows = rank < 2 ? 0 : info->dims[rank - 2];
  if (first < 0 || count < 1 || first > rows - count) {
    fail({errc::invalid_argument,
          "there are no rows " + std::to_string(first) + " to " + std::to_string(first + count - 1), name});
    return {};
  }
  const shape part = rank == 2 ? shape{count, info->dims[1]} : shape{info->dims[0], count, info->dims[2]};
  return append_weight({name, info->type, part, first});
}

value builder::token_ids() { return append(op::token_ids, {}, no_attributes{}); }
value builder::positions() { return append(op::positions, {}, no_attributes{}); }
value builder::token_types() { return append(op::token_types, {}, no_attributes{}); }
value builder::embed(value table, value rows) { return append(op::embed, {table, rows}, no_attributes{}); }
value builder::rms_norm(value x, value weight, float eps, std::int64_t group) {
  return append(op::rms_norm, {x, weight}, norm_attributes{eps, group});
}
value builder::layer_norm(value x, value weight, value bias, float eps) {
  return append(op::layer_norm, {x, weight, bias}, norm_attributes{eps});
}
value builder::rope(value x, const rope_attributes& attributes, value factors, value long_factors) {
  return append(op::rope, {x, factors, long_factors}, attributes);
}
value builder::attention(value q, value k, value v, const attention_attributes& attributes, value sinks) {
  std::vector<value> inputs(attention_attributes::input_count);
  inputs[attention_attributes::q] = q;
  inputs[attention_attributes::k] = k;
  inputs[attention_attributes::v] = v;
  inputs[attention_attributes::sinks] = sinks;
  return append(op::attention, std::move(inputs), attributes);
}
value builder::delta_net(const delta_net_inputs& in, const delta_net_attributes& attributes) {
  return append(op::delta_net, {in.qkv, in.z, in.beta, in.alpha, in.taps, in.dt, in.a, in.norm}, attributes);
}
value builder::glu(value gate, value up, activation act) { return append(op::glu, {gate, up}, glu_attributes{act}); }
value builder::activate(value x, activation act) { return append(op::activate, {x}, activate_attributes{act}); }
value builder::add(value a, value b) { return append(op::add, {a, b}, no_attributes{}); }
value builder::scale(value x, float factor, value weight) {
  return append(op::scale, {x, weight}, scale_attributes{factor});
}
value builder::softcap(value x, float cap) { return append(op::softcap, {x}, softcap_attributes{cap}); }
value builder::columns(value x, std::int64_t first, std::int64_t count, std::int64_t step) {
  return append(op::columns, {x}, columns_attributes{first, count, step});
}
value builder::select_outputs(value x) { return append(op::select_outputs, {x}, no_attributes{}); }

value builder::matmul(value x, value weight, value bias) {
  linear_attributes a;
  a.biases = bias.valid();
  return append(op::linear, a.biases ? std::vector<value>{x, weight, bias} : std::vector<value>{x, weight}, a);
}

value builder::moe_ffn(value x, value router, value gate, value up, value down, const moe_attributes& attributes,
                       const moe_extras& e) {
  return append(
      op::moe_ffn,
      {x, router, gate, up, down, value{}, e.gate_bias, e.up_bias, e.down_bias, e.selection_bias, e.expert_scale},
      attributes);
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
