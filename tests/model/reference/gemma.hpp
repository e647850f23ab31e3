// Gemma 4, and Gemma 3 in the same terms: layers with a sliding window and layers with the whole context, which may
// have heads of different sizes; per-head norms; norms before and after each half of a layer; GeGLU.
#pragma once

#include "model/reference/blocks.hpp"

namespace flywheel::test::reference {

struct gemma_layer {
  attention_shape attention;
  rotary rope;
  std::size_t kv_layer =
      0;  ///< Whose keys and values are attended to: an earlier layer's in the tail that shares them.
};

struct gemma_settings {
  std::vector<gemma_layer> layers;
  bool normalize_values = true;
  double final_softcap = 0;
};

inline gemma_settings gemma3_settings(const model_file& m) {
  gemma_settings s;
  s.normalize_values = false;
  for (std::size_t i = 0; i < m.count("block_count"); ++i) {
    const bool local = (i + 1) % 6 != 0;
    gemma_layer layer;
    layer.attention.heads = m.count("attention.head_count");
    layer.attention.kv_heads = m.count("attention.head_count_kv");
    layer.attention.head_dim = m.count("attention.key_length");
    if (local) layer.attention.window = m.count("attention.sliding_window");
    layer.rope = rotary_of(m, pairs::halves, layer.attention.head_dim);
    if (local) layer.rope.base = 10000, layer.rope.factor = 1;
    layer.kv_layer = i;
    s.layers.push_back(layer);
  }
  return s;
}

inline gemma_settings gemma4_settings(const model_file& m) {
  gemma_settings s;
  s.final_softcap = m.number("final_logit_softcapping", 0);
  const std::size_t n_layers = m.count("block_count");
  const std::size_t first_shared = n_layers - m.count("attention.shared_kv_layers", 0);
  for (std::size_t i = 0; i < n_layers; ++i) {
    const bool local = m.layer_flag("attention.sliding_window_pattern", i);
    gemma_layer layer;
    layer.attention.heads = m.count("attention.head_count");
    layer.attention.kv_heads = m.layer_count("attention.head_count_kv", i);
    layer.attention.head_dim = m.count(local ? "attention.key_length_swa" : "attention.key_length");
    layer.attention.scale = 1;  // the norms of queries and keys are enough
    if (local) layer.attention.window = m.count("attention.sliding_window");
    layer.rope = rotary_of(m, pairs::halves, layer.attention.head_dim);
    if (local) {  // the frequency divisors, which stop most pairs, belong to the other layers
      layer.rope.width = m.count("rope.dimension_count_swa");
      layer.rope.base = m.number("rope.freq_base_swa");
      layer.rope.divisors.clear();
    }
    layer.kv_layer = i;
    if (i >= first_shared)  // the last layer of the same kind that has its own
      for (std::size_t j = 0; j < first_shared; ++j)
        if (m.layer_flag("attention.sliding_window_pattern", j) == local) layer.kv_layer = j;
    s.layers.push_back(layer);
  }
  return s;
}

/// One vector per layer and token beside the embedding: [layers][tokens][embedding_length_per_layer_input].
inline std::vector<rows> per_layer_inputs(const model_file& m, std::span<const std::int32_t> ids, const rows& x) {
  const std::size_t width = m.count("embedding_length_per_layer_input"), n_layers = m.count("block_count");
  const double eps = m.number("attention.layer_norm_rms_epsilon");
  const rows looked_up =
      scaled(embedding(m.get("per_layer_token_embd.weight"), ids), std::sqrt(static_cast<double>(width)));
  const rows projected =
      rms_norm(scaled(linear(m.get("per_layer_model_proj.weight"), x), 1 / std::sqrt(m.number("embedding_length"))),
               m.values("per_layer_proj_norm.weight"), eps, width);
  const rows both = scaled(add(projected, looked_up), 1 / std::numbers::sqrt2);
  std::vector<rows> inputs;
  for (std::size_t layer = 0; layer < n_layers; ++layer) inputs.push_back(columns(both, layer * width, width));
  return inputs;
}

/// The dense feed-forward, and experts beside it where the block has them. Takes the stream before any norm.
inline rows gemma_feed_forward(const model_file& m, const std::string& block, const rows& x, double& gap) {
  const double eps = m.number("attention.layer_norm_rms_epsilon");
  rows y = gated(m, block, "", rms_norm(x, m.values(block + "ffn_norm.weight"), eps), gelu);
  if (m.has(block + "ffn_gate_inp.weight")) {
    y = rms_norm(y, m.values(block + "post_ffw_norm_1.weight"), eps);
    rows r = scaled(rms_norm(x, {}, eps), 1 / std::sqrt(m.number("embedding_length")));
    r = multiply(r, rows(r.size(), m.values(block + "ffn_gate_inp.scale")));
    const rows router_logits = linear(m.get(block + "ffn_gate_inp.weight"), r);
    const rows chosen =
        mixture(m, block, router_logits, rms_norm(x, m.values(block + "pre_ffw_norm_2.weight"), eps), gelu, gap);
    y = add(y, rms_norm(chosen, m.values(block + "post_ffw_norm_2.weight"), eps));
  }
  return rms_norm(y, m.values(block + "post_ffw_norm.weight"), eps);
}

inline prediction gemma(const model_file& m, std::span<const std::int32_t> ids, const gemma_settings& s) {
  const double eps = m.number("attention.layer_norm_rms_epsilon");
  prediction p;
  rows x = scaled(embedding(m.get("token_embd.weight"), ids), std::sqrt(m.number("embedding_length")));
  std::vector<rows> extra;
  if (m.has("per_layer_token_embd.weight")) extra = per_layer_inputs(m, ids, x);

  std::vector<rows> keys(s.layers.size()), values(s.layers.size());
  for (std::size_t i = 0; i < s.layers.size(); ++i) {
    const gemma_layer& layer = s.layers[i];
    const std::size_t head_dim = layer.attention.head_dim;
    const std::string block = block_name(i);
    const rows h = rms_norm(x, m.values(block + "attn_norm.weight"), eps);
    const rows q = rotate(
        rms_norm(linear(m.get(block + "attn_q.weight"), h), m.values(block + "attn_q_norm.weight"), eps, head_dim),
        layer.rope, head_dim);
    if (layer.kv_layer == i) {
      const rows k = linear(m.get(block + "attn_k.weight"), h);
      const rows v = m.has(block + "attn_v.weight") ? linear(m.get(block + "attn_v.weight"), h) : k;
      keys[i] = rotate(rms_norm(k, m.values(block + "attn_k_norm.weight"), eps, head_dim), layer.rope, head_dim);
      values[i] = s.normalize_values ? rms_norm(v, {}, eps, head_dim) : v;
    }
    const rows attended = attention(q, keys[layer.kv_layer], values[layer.kv_layer], layer.attention);
    x = add(x, rms_norm(linear(m.get(block + "attn_output.weight"), attended),
                        m.values(block + "post_attention_norm.weight"), eps));
    x = add(x, gemma_feed_forward(m, block, x, p.router_gap));
    if (!extra.empty()) {
      const rows gate = multiply(each(linear(m.get(block + "inp_gate.weight"), x), gelu), extra[i]);
      x = add(x, rms_norm(linear(m.get(block + "proj.weight"), gate), m.values(block + "post_norm.weight"), eps));
    }
    if (m.has(block + "layer_output_scale.weight")) x = scaled(x, m.values(block + "layer_output_scale.weight").at(0));
  }
  finish(m, x, p);
  if (s.final_softcap != 0)
    p.logits = each(p.logits, [&](double v) { return s.final_softcap * std::tanh(v / s.final_softcap); });
  return p;
}

}  // namespace flywheel::test::reference
