// Shape inference: one checker per operation, the only place that knows which extents fit together.
#include "flywheel/graph/graph.hpp"

namespace flywheel::inline v0::graph {
namespace {

/// Collects the first complaint about one node.
class checker {
 public:
  checker(const graph& g, const node& n) : g_(g), n_(n) {}

  [[nodiscard]] bool inputs(std::size_t count) {
    if (n_.inputs.size() != count) return complain("takes " + std::to_string(count) + " inputs");
    for (value v : n_.inputs)
      if (v.valid() && v.index >= g_.values.size()) return complain("names a value that does not exist");
    return true;
  }
  /// Input i is an activation of f32 with `cols` columns (0: any).
  [[nodiscard]] bool activation(std::size_t i, std::int64_t cols = 0) {
    const value v = n_.inputs[i];
    if (!v.valid()) return complain("lacks input " + std::to_string(i));
    const value_info& info = g_.at(v);
    if (info.type != dtype::f32 || info.rows == row_kind::fixed)
      return complain("input " + std::to_string(i) + " is not an activation");
    if (cols != 0 && info.cols != cols)
      return complain("input " + std::to_string(i) + " has " + std::to_string(info.cols) + " columns, not " +
                      std::to_string(cols));
    return true;
  }
  [[nodiscard]] bool same_rows(std::size_t i, std::size_t j) {
    if (g_.at(n_.inputs[i]).rows != g_.at(n_.inputs[j]).rows) return complain("mixes rows of tokens and of outputs");
    return true;
  }
  /// Input i is a weight with these extents; 0 matches any.
  [[nodiscard]] bool weight(std::size_t i, std::initializer_list<std::int64_t> dims) {
    const weight_info* w = g_.weight_of(n_.inputs[i]);
    if (!w) return complain("input " + std::to_string(i) + " is not a weight");
    bool same = w->dims.rank() == dims.size();
    std::size_t d = 0;
    for (std::int64_t want : dims) {
      if (same && want != 0 && w->dims[d] != want) same = false;
      ++d;
    }
    if (!same) return complain("weight " + w->name + " " + w->dims.to_string() + " does not fit");
    return true;
  }
  [[nodiscard]] bool optional_weight(std::size_t i, std::initializer_list<std::int64_t> dims) {
    return !given(i) || weight(i, dims);
  }
  bool complain(std::string what) {
    if (message_.empty()) message_ = std::string(to_string(n_.kind)) + " " + std::move(what);
    return false;
  }
  template <class A>
  [[nodiscard]] const A* attributes() {
    const A* a = std::get_if<A>(&n_.attributes);
    if (!a) complain("carries the attributes of another operation");
    return a;
  }
  [[nodiscard]] const value_info& in(std::size_t i) const { return g_.at(n_.inputs[i]); }
  [[nodiscard]] const weight_info& tensor(std::size_t i) const { return *g_.weight_of(n_.inputs[i]); }
  [[nodiscard]] bool given(std::size_t i) const { return n_.inputs[i].valid(); }
  [[nodiscard]] error failure() const { return {errc::invalid_argument, message_, "graph"}; }

 private:
  const graph& g_;
  const node& n_;
  std::string message_;
};

using infos = std::vector<value_info>;

value_info activation_of(row_kind rows, std::int64_t cols) { return {dtype::f32, rows, cols, 0}; }

bool infer_linear(checker& c, infos& out) {
  const auto* a = c.attributes<linear_attributes>();
  if (!a) return false;
  if (a->weights == 0) return c.complain("needs a weight");
  if (!c.inputs(a->inputs()) || !c.activation(0)) return false;
  const std::int64_t k = c.in(0).cols;
  for (std::size_t i = 0; i < a->weights; ++i) {
    if (!c.weight(a->weight_input(i), {0, k})) return false;
    const std::int64_t n = c.tensor(a->weight_input(i)).dims[0];
    if (a->biases && !c.optional_weight(a->bias_input(i), {n})) return false;
    out.push_back(activation_of(c.in(0).rows, n));
  }
  if (a->norm && a->norm->group != 0) return c.complain("norms whole rows only");
  if (a->norm && !c.optional_weight(a->norm_input(), {k})) return false;
  if (a->glu) {
    if (a->weights != 2 || out[0].cols != out[1].cols)
      return c.complain("with glu needs two weights of the same extents");
    out.pop_back();
  }
  if (a->act && (out.size() != 1 || a->glu || a->residual))
    return c.complain("with an activation has one output, and neither glu nor residual");
  if (a->residual) {
    if (out.size() != 1) return c.complain("with a residual has one output");
    if (!c.activation(a->residual_input(), out[0].cols) || !c.same_rows(a->residual_input(), 0)) return false;
  }
  return true;
}

bool check_rope(checker& c, const rope_attributes& r) {
  if (r.head_dim < 1 || r.n_rot < 2 || r.n_rot % 2 != 0 || r.n_rot > r.head_dim)
    return c.complain("cannot rotate " + std::to_string(r.n_rot) + " elements of heads of " +
                      std::to_string(r.head_dim));
  return true;
}

bool infer_rope(checker& c, infos& out) {
  const auto* a = c.attributes<rope_attributes>();
  if (!a || !c.inputs(3) || !c.activation(0) || !check_rope(c, *a)) return false;
  if (!c.optional_weight(1, {a->n_rot / 2}) || !c.optional_weight(2, {a->n_rot / 2})) return false;
  if (c.in(0).cols % a->head_dim != 0) return c.complain("gets rows that are not whole heads");
  out.push_back(c.in(0));
  return true;
}

bool infer_attention(checker& c, infos& out) {
  using in = attention_attributes;
  const auto* a = c.attributes<attention_attributes>();
  if (!a || !c.inputs(in::input_count)) return false;
  if (a->n_heads < 1 || a->n_kv_heads < 1 || a->head_dim < 1 || a->layer < 0 || a->n_heads % a->n_kv_heads != 0)
    return c.complain("cannot share " + std::to_string(a->n_kv_heads) + " key heads among " +
                      std::to_string(a->n_heads));
  const std::int64_t kv = a->n_kv_heads * a->head_dim;
  if (!c.activation(in::q, a->n_heads * a->head_dim)) return false;
  if (c.given(in::k) != c.given(in::v)) return c.complain("needs both keys and values, or neither");
  if (c.given(in::k) && (!c.activation(in::k, kv) || !c.activation(in::v, kv))) return false;
  if (c.in(in::q).rows != row_kind::tokens ||
      (c.given(in::k) && (!c.same_rows(in::q, in::k) || !c.same_rows(in::q, in::v))))
    return c.complain("needs all tokens' rows");
  if (a->temperature != 0 && a->temperature_length < 1) return c.complain("has a temperature without its length");
  const bool plain = a->window == 0 && a->temperature == 0 && !c.given(in::sinks) && !a->norm_eps[0] &&
                     !a->norm_eps[1] && !a->norm_eps[2];
  if (!a->causal && !(plain && c.given(in::k)))
    return c.complain("that is not causal needs keys and values, and has no window, temperature, sinks or norms");
  if (a->rope && (!check_rope(c, *a->rope) || a->rope->head_dim != a->head_dim))
    return c.complain("has another head size than its rope");
  for (const std::size_t i : {in::rope_factors, in::long_rope_factors})
    if (c.given(i) && (!a->rope || !c.weight(i, {a->rope->n_rot / 2})))
      return c.complain("has rotary factors that do not fit");
  if (!c.optional_weight(in::sinks, {a->n_heads})) return false;
  for (std::size_t i = 0; i < 3; ++i) {
    if (a->norm_eps[i] && !c.given(i)) return c.complain("norms keys or values that it does not have");
    if (c.given(in::q_norm + i) && (!a->norm_eps[i] || !c.weight(in::q_norm + i, {a->head_dim})))
      return c.complain("has weights of norms that do not fit");
  }
  out.push_back(c.in(0));
  return true;
}

bool infer_delta_net(checker& c, infos& out) {
  const auto* a = c.attributes<delta_net_attributes>();
  if (!a || !c.inputs(8)) return false;
  constexpr std::int64_t limit = 1 << 16;
  for (const std::int64_t n : {a->n_k_heads, a->n_v_heads, a->head_k_dim, a->head_v_dim})
    if (n < 1 || n > limit) return c.complain("has " + std::to_string(n) + " heads or elements of a head");
  if (a->layer < 0 || a->n_v_heads % a->n_k_heads != 0)
    return c.complain("cannot share " + std::to_string(a->n_k_heads) + " key heads among " +
                      std::to_string(a->n_v_heads));
  if (a->conv_kernel < 1 || a->conv_kernel > 16)
    return c.complain("cannot convolve over " + std::to_string(a->conv_kernel) + " tokens; the limit is 16");
  if (!c.activation(0, a->channels()) || !c.activation(1, a->values())) return false;
  if (!c.activation(2, a->n_v_heads) || !c.activation(3, a->n_v_heads)) return false;
  for (std::size_t i = 0; i < 4; ++i)
    if (c.in(i).rows != row_kind::tokens) return c.complain("needs all tokens' rows");
  if (!c.weight(4, {a->channels(), a->conv_kernel}) || !c.weight(5, {a->n_v_heads})) return false;
  if (!c.weight(6, {a->n_v_heads}) || !c.weight(7, {a->head_v_dim})) return false;
  out.push_back(c.in(1));
  return true;
}

bool infer_moe(checker& c, infos& out) {
  using in = moe_attributes;
  const auto* a = c.attributes<moe_attributes>();
  if (!a || !c.inputs(in::input_count) || !c.activation(in::x)) return false;
  if (a->n_expert < 1 || a->n_used < 1 || a->n_used > a->n_expert)
    return c.complain("cannot use " + std::to_string(a->n_used) + " of " + std::to_string(a->n_expert) + " experts");
  const std::int64_t n = c.in(0).cols;
  if (!c.activation(in::router, a->n_expert) || !c.same_rows(in::x, in::router)) return false;
  if (!c.weight(in::gate, {a->n_expert, 0, n})) return false;
  const std::int64_t ff = c.tensor(in::gate).dims[1];
  if (!c.weight(in::up, {a->n_expert, ff, n}) || !c.weight(in::down, {a->n_expert, n, ff})) return false;
  if (c.given(in::residual) && (!c.activation(in::residual, n) || !c.same_rows(in::x, in::residual))) return false;
  if (!c.optional_weight(in::gate_bias, {a->n_expert, ff}) || !c.optional_weight(in::up_bias, {a->n_expert, ff}) ||
      !c.optional_weight(in::down_bias, {a->n_expert, n}) || !c.optional_weight(in::selection_bias, {a->n_expert}) ||
      !c.optional_weight(in::expert_scale, {a->n_expert}))
    return false;
  out.push_back(c.in(0));
  return true;
}

bool infer_into(checker& c, const graph& g, const node& n, infos& out) {
  switch (n.kind) {
    case op::token_ids:
    case op::positions:
    case op::token_types:
      if (!c.inputs(0)) return false;
      out.push_back({dtype::i32, row_kind::tokens, 1, 0});
      return true;
    case op::weight: {
      const auto* a = c.attributes<weight_attributes>();
      if (!a || !c.inputs(0)) return false;
      if (a->index >= g.weights.size()) return c.complain("does not exist");
      out.push_back({g.weights[a->index].type, row_kind::fixed, g.weights[a->index].dims.cols(), 0});
      return true;
    }
    case op::embed:
      if (!c.inputs(2) || !c.weight(0, {0, 0})) return false;
      if (!c.given(1) || c.in(1).type != dtype::i32) return c.complain("needs numbers of rows, such as token ids");
      out.push_back(activation_of(row_kind::tokens, c.tensor(0).dims[1]));
      return true;
    case op::rms_norm: {
      const auto* a = c.attributes<norm_attributes>();
      if (!a || !c.inputs(2) || !c.activation(0)) return false;
      const std::int64_t group = a->group == 0 ? c.in(0).cols : a->group;
      if (group < 1 || c.in(0).cols % group != 0) return c.complain("gets rows that are not whole groups");
      if (!c.optional_weight(1, {group})) return false;
      out.push_back(c.in(0));
      return true;
    }
    case op::layer_norm:
      if (!c.attributes<norm_attributes>() || !c.inputs(3) || !c.activation(0)) return false;
      if (!c.weight(1, {c.in(0).cols}) || (c.given(2) && !c.weight(2, {c.in(0).cols}))) return false;
      out.push_back(c.in(0));
      return true;
    case op::linear:
      return infer_linear(c, out);
    case op::rope:
      return infer_rope(c, out);
    case op::attention:
      return infer_attention(c, out);
    case op::delta_net:
      return infer_delta_net(c, out);
    case op::glu:
      if (!c.attributes<glu_attributes>() || !c.inputs(2) || !c.activation(0) || !c.activation(1)) return false;
      if (c.in(0).cols != 1 && !c.activation(0, c.in(1).cols)) return false;
      if (!c.same_rows(0, 1)) return false;
      out.push_back(c.in(1));
      return true;
    case op::add:
      if (!c.inputs(2) || !c.activation(0) || !c.activation(1, c.in(0).cols) || !c.same_rows(0, 1)) return false;
      out.push_back(c.in(0));
      return true;
    case op::activate:
      if (!c.attributes<activate_attributes>() || !c.inputs(1) || !c.activation(0)) return false;
      out.push_back(c.in(0));
      return true;
    case op::scale:
      if (!c.attributes<scale_attributes>() || !c.inputs(2) || !c.activation(0) || !c.optional_weight(1, {1}))
        return false;
      out.push_back(c.in(0));
      return true;
    case op::softcap: {
      const auto* a = c.attributes<softcap_attributes>();
      if (!a || !c.inputs(1) || !c.activation(0)) return false;
      if (!(a->cap > 0)) return c.complain("needs a positive cap");
      out.push_back(c.in(0));
      return true;
    }
    case op::columns: {
      const auto* a = c.attributes<columns_attributes>();
      if (!a || !c.inputs(1) || !c.activation(0)) return false;
      const std::int64_t n = c.in(0).cols, step = a->step == 0 ? n : a->step;
      if (step < 1 || n % step != 0 || a->first < 0 || a->count < 1 || a->first > step - a->count)
        return c.complain("asks for columns that are not there");
      out.push_back(activation_of(c.in(0).rows, n / step * a->count));
      return true;
    }
    case op::select_outputs:
      if (!c.inputs(1) || !c.activation(0)) return false;
      if (c.in(0).rows != row_kind::tokens) return c.complain("needs all tokens' rows");
      out.push_back(activation_of(row_kind::outputs, c.in(0).cols));
      return true;
    case op::moe_ffn:
      return infer_moe(c, out);
    case op::tap:
      if (!c.attributes<tap_attributes>() || !c.inputs(1) || !c.activation(0)) return false;
      out.push_back(c.in(0));
      return true;
  }
  return c.complain("is not known");
}

}  // namespace

result<std::vector<value_info>> infer(const graph& g, const node& n) {
  checker c(g, n);
  infos out;
  if (!infer_into(c, g, n, out)) return c.failure();
  return out;
}

}  // namespace flywheel::inline v0::graph
