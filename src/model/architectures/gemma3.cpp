// gemma3 (Gemma Team 2025): as gemma2 without soft-caps, with norms of every head of queries and keys; five layers with
// a sliding window and a short rotary base, then one that sees everything, with the metadata's base and scaling.
#include <cmath>

#include "src/model/architectures/decoder.hpp"
#include "src/model/key_reader.hpp"

namespace flywheel::inline v0::detail {

result<graph::graph> build_gemma3(const io::archive& file, const hyperparameters& h, graph_output output) {
  key_reader keys(file.metadata(), h.architecture);
  const std::int64_t period = keys.integer_or("attention.sliding_window_pattern", 6, 1, 4096);
  const double local_base = keys.number_or("rope.freq_base_swa", 10000, 1.0001, 1e12);
  const float logits_cap = keys.float_or("final_logit_softcapping", 0, 0, 1e6);
  if (keys.failure) return *keys.failure;

  decoder d(file, h, output);
  attention_options global = d.attention_with(rope_pairs::halves);
  global.residual.post_norm = "post_attention_norm";
  global.norm_heads = true;
  // The 27B model (62 layers) scales by the width per head, which is not the size of its heads.
  if (h.attention_scale == 0 && h.n_layers == 62)
    global.scores.scale = 1 / std::sqrt(static_cast<float>(h.n_embd) / static_cast<float>(h.n_heads));
  attention_options local = global;
  local.scores.window = h.window;
  local.rope = graph::rope_attributes{};
  local.rope->head_dim = h.head_dim;
  local.rope->n_rot = h.rope.n_rot;
  local.rope->pairs = rope_pairs::halves;
  local.rope->base = local_base;
  local.rope_factors = false;
  feed_forward_options feed_forward;
  feed_forward.residual.post_norm = "post_ffw_norm";
  feed_forward.act = activation::gelu_tanh;
  d.embed(std::sqrt(static_cast<float>(h.n_embd)));
  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    d.attention(layer, (layer + 1) % period == 0 ? global : local);
    d.feed_forward(layer, feed_forward);
  }
  return d.finish({1, logits_cap});
}

}  // namespace flywheel::inline v0::detail
