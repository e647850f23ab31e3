// llama: Llama 1-3, Mistral, Mixtral, SmolLM2, TinyLlama and many others (Touvron et al. 2023; Jiang et al. 2023,
// 2024). GGUF stores the rows of Q and K so that adjacent elements rotate together.
#include <cmath>

#include "src/model/architecture.hpp"

namespace flywheel::inline v0::detail {

result<graph::graph> build_llama(const io::archive& file, const hyperparameters& h, graph_output output) {
  graph::builder b(file);
  const std::int64_t d = h.n_embd, q_width = h.n_heads * h.head_dim, kv_width = h.n_kv_heads * h.head_dim;

  const graph::value table = b.weight("token_embd.weight", {h.n_vocab, d});
  const graph::value rope_factors = b.optional_weight("rope_freqs.weight", {h.rope.n_rot / 2});
  graph::value x = b.embed(table, b.token_ids());

  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    const auto name = [&](const char* part) { return "blk." + std::to_string(layer) + "." + part; };

    // Attention with grouped queries.
    const graph::value a = b.rms_norm(x, b.weight(name("attn_norm.weight"), {d}), h.norm_eps);
    graph::value q =
        b.matmul(a, b.weight(name("attn_q.weight"), {q_width, d}), b.optional_weight(name("attn_q.bias"), {q_width}));
    graph::value k =
        b.matmul(a, b.weight(name("attn_k.weight"), {kv_width, d}), b.optional_weight(name("attn_k.bias"), {kv_width}));
    const graph::value v =
        b.matmul(a, b.weight(name("attn_v.weight"), {kv_width, d}), b.optional_weight(name("attn_v.bias"), {kv_width}));
    q = b.rope(q, h.rope, rope_factors);
    k = b.rope(k, h.rope, rope_factors);
    graph::attention_attributes attention;
    attention.layer = layer;
    attention.n_heads = h.n_heads;
    attention.n_kv_heads = h.n_kv_heads;
    attention.head_dim = h.head_dim;
    attention.scale = 1.0F / std::sqrt(static_cast<float>(h.head_dim));
    graph::value attended = b.attention(q, k, v, attention);

    // Nothing after the last attention mixes tokens: go on with the rows whose results are wanted.
    if (layer + 1 == h.n_layers) {
      attended = b.select_outputs(attended);
      x = b.select_outputs(x);
    }
    x = b.add(x, b.matmul(attended, b.weight(name("attn_output.weight"), {d, q_width}),
                          b.optional_weight(name("attn_output.bias"), {d})));

    // Feed-forward: one gated layer, or a choice of experts.
    const graph::value f = b.rms_norm(x, b.weight(name("ffn_norm.weight"), {d}), h.norm_eps);
    if (h.n_expert > 0) {
      const graph::value router = b.matmul(f, b.weight(name("ffn_gate_inp.weight"), {h.n_expert, d}));
      graph::moe_attributes moe;
      moe.n_expert = h.n_expert;
      moe.n_used = h.n_expert_used;
      x = b.add(x, b.moe_ffn(f, router, b.weight(name("ffn_gate_exps.weight"), {h.n_expert, h.n_ff, d}),
                             b.weight(name("ffn_up_exps.weight"), {h.n_expert, h.n_ff, d}),
                             b.weight(name("ffn_down_exps.weight"), {h.n_expert, d, h.n_ff}), moe));
    } else {
      const graph::value gate = b.matmul(f, b.weight(name("ffn_gate.weight"), {h.n_ff, d}),
                                         b.optional_weight(name("ffn_gate.bias"), {h.n_ff}));
      const graph::value up =
          b.matmul(f, b.weight(name("ffn_up.weight"), {h.n_ff, d}), b.optional_weight(name("ffn_up.bias"), {h.n_ff}));
      x = b.add(x, b.matmul(b.glu(gate, up, activation::silu), b.weight(name("ffn_down.weight"), {d, h.n_ff}),
                            b.optional_weight(name("ffn_down.bias"), {d})));
    }
  }

  x = b.rms_norm(x, b.weight("output_norm.weight", {d}), h.norm_eps);
  if (output == graph_output::logits) {
    const graph::value head = b.optional_weight("output.weight", {h.n_vocab, d});
    x = b.matmul(x, head.valid() ? head : table);  // tied: the embedding table is the output head
  }
  b.output(x);
  return b.finish();
}

}  // namespace flywheel::inline v0::detail
