#include "src/model/architectures/decoder.hpp"

#include <cmath>

#include "src/model/key_reader.hpp"

namespace flywheel::inline v0::detail {
namespace {

std::string name_of(std::int64_t layer, const std::string& part) { return "blk." + std::to_string(layer) + "." + part; }

}  // namespace

decoder::decoder(const io::archive& archive, const hyperparameters& numbers, graph_output output)
    : file(archive), h(numbers), b(archive), output_(output) {
  key_reader keys(file.metadata(), h.architecture);
  if (!keys.boolean_or("attention.causal", true))
    keys.refuse("attention.causal", errc::unsupported, "unsupported: a decoder whose tokens see those after them");
  if (keys.failure) b.fail(*std::move(keys.failure));
}

attention_options decoder::attention_with(rope_pairs pairs) const {
  attention_options o;
  o.scores.head_dim = h.head_dim;
  o.scores.scale = h.attention_scale > 0 ? h.attention_scale : 1.0F / std::sqrt(static_cast<float>(h.head_dim));
  o.rope = h.rope;
  o.rope->pairs = pairs;
  return o;
}

graph::value decoder::weight(std::int64_t layer, const char* part, std::initializer_list<std::int64_t> dims) {
  return b.weight(name_of(layer, part), dims);
}

graph::value decoder::optional_weight(std::int64_t layer, const char* part, std::initializer_list<std::int64_t> dims) {
  return b.optional_weight(name_of(layer, part), dims);
}

graph::value decoder::norm(std::int64_t layer, const char* part, graph::value in) {
  return b.rms_norm(in, b.weight(name_of(layer, part) + ".weight", {h.n_embd}), h.norm_eps);
}

graph::value decoder::product(std::int64_t layer, const char* part, graph::value in, std::int64_t n, std::int64_t k) {
  const std::string name = name_of(layer, part);
  return b.matmul(in, b.weight(name + ".weight", {n, k}), b.optional_weight(name + ".bias", {n}));
}

void decoder::refuse_bias(std::int64_t layer, const char* part) {
  if (const std::string name = name_of(layer, part) + ".bias"; file.find(name))
    b.fail({errc::unsupported, "unsupported: a bias of rows that are several parts in one tensor", name});
}

void decoder::embed(float scale) {
  table = b.weight("token_embd.weight", {h.n_vocab, h.n_embd});
  x = b.embed(table, b.token_ids());
  if (scale != 1) x = b.scale(x, scale);
}

void decoder::select_outputs(graph::value& y) {
  y = b.select_outputs(y);
  x = b.select_outputs(x);
}

void decoder::add(std::int64_t layer, graph::value y, const residual_options& residual) {
  if (residual.post_norm) y = norm(layer, residual.post_norm, y);
  if (residual.scale != 1) y = b.scale(y, residual.scale);
  x = b.add(x, y);
}

void decoder::attention(std::int64_t layer, const attention_options& o) {
  graph::attention_attributes scores = o.scores;
  scores.layer = layer;
  scores.n_heads = h.of(layer).n_heads;
  scores.n_kv_heads = h.of(layer).n_kv_heads;
  const std::int64_t q_width = scores.n_heads * scores.head_dim, kv_width = scores.n_kv_heads * scores.head_dim;

  const graph::value in = norm(layer, o.residual.norm, x);
  graph::value q, k, v, gate;
  if (const std::string fused = name_of(layer, "attn_qkv.weight"); file.find(fused)) {
    const auto rows = [&](std::int64_t first, std::int64_t count) {
      return b.matmul(in, b.weight_rows(fused, {q_width + 2 * kv_width, h.n_embd}, first, count));
    };
    q = rows(0, q_width);
    k = rows(q_width, kv_width);
    v = rows(q_width + kv_width, kv_width);
    refuse_bias(layer, "attn_qkv");
  } else {
    q = product(layer, "attn_q", in, o.output_gate ? 2 * q_width : q_width, h.n_embd);
    k = product(layer, "attn_k", in, kv_width, h.n_embd);
    v = product(layer, "attn_v", in, kv_width, h.n_embd);
  }
  if (o.output_gate) {
    gate = b.columns(q, scores.head_dim, scores.head_dim, 2 * scores.head_dim);
    q = b.columns(q, 0, scores.head_dim, 2 * scores.head_dim);
  }
  if (o.norm_heads) {
    q = b.rms_norm(q, weight(layer, "attn_q_norm.weight", {scores.head_dim}), h.norm_eps, scores.head_dim);
    k = b.rms_norm(k, weight(layer, "attn_k_norm.weight", {scores.head_dim}), h.norm_eps, scores.head_dim);
  }
  if (o.rope) {
    const std::int64_t pairs = o.rope->n_rot / 2;
    graph::value factors, long_factors;
    if (h.long_rope && o.rope_factors) {
      factors = b.weight("rope_factors_short.weight", {pairs});
      long_factors = b.weight("rope_factors_long.weight", {pairs});
    } else if (o.rope_factors) {
      factors = b.optional_weight("rope_freqs.weight", {pairs});
    }
    q = b.rope(q, *o.rope, factors, long_factors);
    k = b.rope(k, *o.rope, factors, long_factors);
  }
  const graph::value sinks = o.sinks ? weight(layer, "attn_sinks.weight", {scores.n_heads}) : graph::value{};
  graph::value attended = b.attention(q, k, v, scores, sinks);
  if (o.output_gate) attended = b.glu(gate, attended, activation::sigmoid);
  if (layer + 1 == h.n_layers) select_outputs(attended);
  add(layer, product(layer, "attn_output", attended, h.n_embd, q_width), o.residual);
}

graph::value decoder::gated(std::int64_t layer, graph::value in, activation act) {
  const std::int64_t ff = h.of(layer).n_ff;
  graph::value gate, up;
  if (file.find(name_of(layer, "ffn_gate.weight"))) {
    gate = product(layer, "ffn_gate", in, ff, h.n_embd);
    up = product(layer, "ffn_up", in, ff, h.n_embd);
  } else {
    const std::string fused = name_of(layer, "ffn_up.weight");
    gate = b.matmul(in, b.weight_rows(fused, {2 * ff, h.n_embd}, 0, ff));
    up = b.matmul(in, b.weight_rows(fused, {2 * ff, h.n_embd}, ff, ff));
    refuse_bias(layer, "ffn_up");
  }
  return product(layer, "ffn_down", b.glu(gate, up, act), h.n_embd, ff);
}

graph::value decoder::experts(std::int64_t layer, graph::value in, activation act, graph::value router) {
  const std::int64_t n = h.n_expert, d = h.n_embd, ff = h.n_ff_expert;
  graph::moe_attributes moe;
  moe.n_expert = n;
  moe.n_used = h.n_expert_used;
  moe.scale = h.expert_weights_scale;
  moe.act = act;
  graph::value gate, up;
  if (const std::string fused = name_of(layer, "ffn_gate_up_exps.weight"); file.find(fused)) {
    gate = b.weight_rows(fused, {n, 2 * ff, d}, 0, ff);
    up = b.weight_rows(fused, {n, 2 * ff, d}, ff, ff);
  } else {
    gate = weight(layer, "ffn_gate_exps.weight", {n, ff, d});
    up = weight(layer, "ffn_up_exps.weight", {n, ff, d});
  }
  const graph::value down = weight(layer, "ffn_down_exps.weight", {n, d, ff});
  graph::builder::moe_extras extras;
  extras.gate_bias = optional_weight(layer, "ffn_gate_exps.bias", {n, ff});
  extras.up_bias = optional_weight(layer, "ffn_up_exps.bias", {n, ff});
  extras.down_bias = optional_weight(layer, "ffn_down_exps.bias", {n, d});
  extras.selection_bias = optional_weight(layer, "exp_probs_b.bias", {n});
  extras.expert_scale = optional_weight(layer, "ffn_down_exps.scale", {n});
  if (!router.valid()) router = product(layer, "ffn_gate_inp", in, n, d);
  return b.moe_ffn(in, router, gate, up, down, moe, extras);
}

void decoder::feed_forward(std::int64_t layer, const feed_forward_options& o) {
  const graph::value in = norm(layer, o.residual.norm, x);
  add(layer, h.n_expert > 0 ? experts(layer, in, o.act) : gated(layer, in, o.act), o.residual);
}

result<graph::graph> decoder::finish(const output_options& o) {
  x = b.rms_norm(x, b.weight("output_norm.weight", {h.n_embd}), h.norm_eps);
  if (output_ == graph_output::logits) {
    const graph::value head = b.optional_weight("output.weight", {h.n_vocab, h.n_embd});
    x = b.matmul(x, head.valid() ? head : table, b.optional_weight("output.bias", {h.n_vocab}));
    if (o.scale != 1) x = b.scale(x, o.scale);
    if (o.softcap > 0) x = b.softcap(x, o.softcap);
  }
  b.output(x);
  return b.finish();
}

}  // namespace flywheel::inline v0::detail
