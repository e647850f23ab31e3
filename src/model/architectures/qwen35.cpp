// qwen35 and qwen35moe (Qwen 3.5, 2026): three of four layers are gated delta nets (Yang, Kautz & Hatamizadeh 2025),
// every fourth is attention with a norm of every head of queries and keys, and a gate on what each head attended to. In
// text all sections of the rotation (M-RoPE) have the same position, which makes it the plain one. With experts, one
// that all tokens share has a gate of its own.
#include "flywheel/detail/try.hpp"
#include "src/model/architectures/decoder.hpp"
#include "src/model/key_reader.hpp"

namespace flywheel::inline v0::detail {
namespace {

/// What only this family has in its metadata.
struct qwen35_numbers {
  graph::delta_net_attributes delta;
  std::int64_t attention_interval = 0;  ///< Layers interval - 1, 2 interval - 1, ... attend.
  std::int64_t n_predicting = 0;        ///< Last layers, for predicting several tokens at once: not used here.
  std::int64_t n_ff_shared = 0;         ///< Of the shared expert.
};

result<qwen35_numbers> read_numbers(const io::archive& file, const hyperparameters& h) {
  constexpr std::int64_t most = 65536;
  key_reader keys(file.metadata(), h.architecture);
  qwen35_numbers n;
  n.delta.n_k_heads = keys.integer("ssm.group_count", 1, most);
  n.delta.n_v_heads = keys.integer("ssm.time_step_rank", 1, most);
  n.delta.head_k_dim = keys.integer("ssm.state_size", 1, most);
  n.delta.conv_kernel = keys.integer("ssm.conv_kernel", 1, most);
  n.delta.eps = h.norm_eps;
  const std::int64_t values = keys.integer("ssm.inner_size", 1, most * most);
  if (values % n.delta.n_v_heads != 0)
    keys.refuse("ssm.inner_size", errc::malformed,
                std::to_string(values) + " values are not whole heads, of which there are " +
                    std::to_string(n.delta.n_v_heads));
  n.delta.head_v_dim = values / n.delta.n_v_heads;
  n.attention_interval = keys.integer_or("full_attention_interval", 4, 1, most);
  n.n_predicting = keys.integer_or("nextn_predict_layers", 0, 0, h.n_layers - 1);
  n.n_ff_shared = keys.integer_or("expert_shared_feed_forward_length", h.n_ff_expert, 1, most * most);
  if (keys.failure) return *keys.failure;
  return n;
}

/// x += ssm_out(delta net of x).
void delta_net(decoder& d, std::int64_t layer, graph::delta_net_attributes a) {
  const std::int64_t n_embd = d.h.n_embd, heads = a.n_v_heads;
  a.layer = layer;
  const graph::value in = d.norm(layer, "attn_norm", d.x);
  graph::value y = d.b.delta_net({.qkv = d.product(layer, "attn_qkv", in, a.channels(), n_embd),
                                  .z = d.product(layer, "attn_gate", in, a.values(), n_embd),
                                  .beta = d.product(layer, "ssm_beta", in, heads, n_embd),
                                  .alpha = d.product(layer, "ssm_alpha", in, heads, n_embd),
                                  .taps = d.weight(layer, "ssm_conv1d.weight", {a.channels(), a.conv_kernel}),
                                  .dt = d.weight(layer, "ssm_dt.bias", {heads}),
                                  .a = d.weight(layer, "ssm_a", {heads}),
                                  .norm = d.weight(layer, "ssm_norm.weight", {a.head_v_dim})},
                                 a);
  if (layer + 1 == d.h.n_layers) d.select_outputs(y);
  d.add(layer, d.product(layer, "ssm_out", y, n_embd, a.values()), {});
}

/// x += the chosen experts' sum + sigmoid(gate) * the shared expert.
void experts(decoder& d, std::int64_t layer, std::int64_t n_ff_shared) {
  const std::int64_t n_embd = d.h.n_embd;
  const graph::value in = d.norm(layer, "post_attention_norm", d.x);
  const graph::value shared =
      d.product(layer, "ffn_down_shexp",
                d.b.glu(d.product(layer, "ffn_gate_shexp", in, n_ff_shared, n_embd),
                        d.product(layer, "ffn_up_shexp", in, n_ff_shared, n_embd), activation::silu),
                n_embd, n_ff_shared);
  const graph::value gate = d.b.matmul(in, d.weight(layer, "ffn_gate_inp_shexp.weight", {1, n_embd}));
  d.add(layer, d.experts(layer, in, activation::silu), {});
  d.add(layer, d.b.glu(gate, shared, activation::sigmoid), {});
}

}  // namespace

result<graph::graph> build_qwen35(const io::archive& file, const hyperparameters& all, graph_output output) {
  FLYWHEEL_TRY(const qwen35_numbers n, read_numbers(file, all));
  hyperparameters h = all;
  h.n_layers -= n.n_predicting;
  decoder d(file, h, output);
  attention_options attention = d.attention_with(rope_pairs::halves);
  attention.norm_heads = true;
  attention.output_gate = true;
  feed_forward_options dense;
  dense.residual.norm = "post_attention_norm";
  d.embed();
  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    if ((layer + 1) % n.attention_interval == 0)
      d.attention(layer, attention);
    else
      delta_net(d, layer, n.delta);
    if (h.n_expert > 0)
      experts(d, layer, n.n_ff_shared);
    else
      d.feed_forward(layer, dense);
  }
  return d.finish();
}

}  // namespace flywheel::inline v0::detail
