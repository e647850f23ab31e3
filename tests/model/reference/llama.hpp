// The llama layer and those that differ from it by a number: llama and llama with experts, smollm3, granite, mistral3,
// qwen3.
#pragma once

#include "model/reference/blocks.hpp"

namespace flywheel::test::reference {

struct llama_settings {
  reference::pairs pairs = reference::pairs::adjacent;
  std::size_t unrotated_every = 0;  ///< Layers whose number (from 1) is a multiple have no rotary positions; 0: none.
  double embedding_scale = 1;
  double residual_scale = 1;   ///< Of what attention and feed-forward add to the stream.
  double attention_scale = 0;  ///< 0: 1 / sqrt(head_dim).
  double logit_divisor = 1;
  /// Queries at position p are multiplied by 1 + temperature * ln(1 + floor(p / temperature_length)).
  double temperature = 0, temperature_length = 1;
};

inline prediction llama(const model_file& m, std::span<const std::int32_t> ids, const llama_settings& s = {}) {
  const double eps = m.number("attention.layer_norm_rms_epsilon");
  attention_shape shape;
  shape.heads = m.count("attention.head_count");
  shape.kv_heads = m.count("attention.head_count_kv");
  shape.head_dim = m.count("attention.key_length", m.count("embedding_length") / shape.heads);
  shape.scale = s.attention_scale;
  const rotary rope = rotary_of(m, s.pairs, shape.head_dim);

  prediction p;
  rows x = scaled(embedding(m.get("token_embd.weight"), ids), s.embedding_scale);
  for (std::size_t layer = 0; layer < m.count("block_count"); ++layer) {
    const std::string block = block_name(layer);
    const rows h = rms_norm(x, m.values(block + "attn_norm.weight"), eps);
    rows q = linear(m.get(block + "attn_q.weight"), h, m.values_or_none(block + "attn_q.bias"));
    rows k = linear(m.get(block + "attn_k.weight"), h, m.values_or_none(block + "attn_k.bias"));
    const rows v = linear(m.get(block + "attn_v.weight"), h, m.values_or_none(block + "attn_v.bias"));
    if (m.has(block + "attn_q_norm.weight")) {  // qwen3: per head, before the rotation
      q = rms_norm(q, m.values(block + "attn_q_norm.weight"), eps, shape.head_dim);
      k = rms_norm(k, m.values(block + "attn_k_norm.weight"), eps, shape.head_dim);
    }
    if (s.unrotated_every == 0 || (layer + 1) % s.unrotated_every != 0) {
      q = rotate(q, rope, shape.head_dim);
      k = rotate(k, rope, shape.head_dim);
    }
    for (std::size_t t = 0; t < q.size(); ++t)
      for (double& value : q[t])
        value *= 1 + s.temperature * std::log(1 + std::floor(static_cast<double>(t) / s.temperature_length));
    x = add(x, linear(m.get(block + "attn_output.weight"), attention(q, k, v, shape)), s.residual_scale);

    const rows g = rms_norm(x, m.values(block + "ffn_norm.weight"), eps);
    const bool experts = m.has(block + "ffn_gate_inp.weight");
    x = add(x,
            experts ? mixture(m, block, linear(m.get(block + "ffn_gate_inp.weight"), g), g, silu, p.router_gap)
                    : gated(m, block, "", g, silu),
            s.residual_scale);
  }
  finish(m, x, p);
  p.logits = scaled(p.logits, 1 / s.logit_divisor);
  return p;
}

}  // namespace flywheel::test::reference
