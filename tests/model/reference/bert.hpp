// BERT (Devlin et al. 2018) and nomic-bert: encoders with norms after each half of a layer. nomic-bert has rotary
// positions, fused QKV without biases, and a gated feed-forward.
#pragma once

#include "model/reference/blocks.hpp"

namespace flywheel::test::reference {

/// Hidden states of all tokens, type 0.
inline rows bert(const model_file& m, std::span<const std::int32_t> ids) {
  const double eps = m.number("attention.layer_norm_epsilon");
  const std::size_t n_embd = m.count("embedding_length");
  attention_shape shape;
  shape.heads = shape.kv_heads = m.count("attention.head_count");
  shape.head_dim = n_embd / shape.heads;
  shape.causal = false;
  const bool rotates = !m.has("position_embd.weight");
  const rotary rope = rotary_of(m, pairs::halves, shape.head_dim);
  const auto norm = [&](const rows& x, const std::string& name) {
    return layer_norm(x, m.values(name + ".weight"), m.values(name + ".bias"), eps);
  };
  const auto product = [&](const rows& x, const std::string& name) {
    return linear(m.get(name + ".weight"), x, m.values_or_none(name + ".bias"));
  };

  rows x = embedding(m.get("token_embd.weight"), ids);
  for (std::size_t t = 0; t < x.size(); ++t) {
    if (m.has("token_types.weight")) x[t] = add({x[t]}, {m.get("token_types.weight").slice(0, 1).values})[0];
    if (!rotates) x[t] = add({x[t]}, {m.get("position_embd.weight").slice(t, 1).values})[0];
  }
  x = norm(x, "token_embd_norm");
  for (std::size_t layer = 0; layer < m.count("block_count"); ++layer) {
    const std::string block = block_name(layer);
    rows q, k, v;
    if (m.has(block + "attn_qkv.weight")) {
      const rows all = product(x, block + "attn_qkv");
      q = columns(all, 0, n_embd), k = columns(all, n_embd, n_embd), v = columns(all, 2 * n_embd, n_embd);
    } else {
      q = product(x, block + "attn_q"), k = product(x, block + "attn_k"), v = product(x, block + "attn_v");
    }
    if (rotates) q = rotate(q, rope, shape.head_dim), k = rotate(k, rope, shape.head_dim);
    x = norm(add(x, product(attention(q, k, v, shape), block + "attn_output")), block + "attn_output_norm");
    const rows y = m.has(block + "ffn_gate.weight")
                       ? gated(m, block, "", x, silu)
                       : product(each(product(x, block + "ffn_up"), gelu), block + "ffn_down");
    x = norm(add(x, y), block + "layer_output_norm");
  }
  return x;
}

enum class pooling : std::uint8_t { mean = 1, first = 2, last = 3 };  ///< As `pooling_type` counts.

inline vec pooled(const rows& hidden, pooling how) {
  if (how != pooling::mean) return how == pooling::first ? hidden.front() : hidden.back();
  vec mean(hidden.front().size(), 0.0);
  for (const vec& row : hidden)
    for (std::size_t i = 0; i < row.size(); ++i) mean[i] += row[i] / static_cast<double>(hidden.size());
  return mean;
}

}  // namespace flywheel::test::reference
