// gemma2 (Gemma Team 2024): norms before and after every block, GELU-gated layers, soft-caps on scores and logits, a
// sliding window on even layers. Files store the weights of norms with the 1 already added.
#include <cmath>

#include "src/model/architectures/decoder.hpp"
#include "src/model/key_reader.hpp"

namespace flywheel::inline v0::detail {

result<graph::graph> build_gemma2(const io::archive& file, const hyperparameters& h, graph_output output) {
  key_reader keys(file.metadata(), h.architecture);
  const float scores_cap = keys.float_or("attn_logit_softcapping", 50, 0, 1e6);
  const float logits_cap = keys.float_or("final_logit_softcapping", 30, 0, 1e6);
  if (keys.failure) return *keys.failure;

  decoder d(file, h, output);
  attention_options global = d.attention_with(rope_pairs::halves);
  global.residual.post_norm = "post_attention_norm";
  global.scores.softcap = scores_cap;
  // The 27B model (46 layers) scales by the width per head, which is not the size of its heads.
  if (h.attention_scale == 0 && h.n_layers == 46)
    global.scores.scale = 1 / std::sqrt(static_cast<float>(h.n_embd) / static_cast<float>(h.n_heads));
  attention_options local = global;
  local.scores.window = h.window;
  feed_forward_options feed_forward;
  feed_forward.residual.post_norm = "post_ffw_norm";
  feed_forward.act = activation::gelu_tanh;
  d.embed(std::sqrt(static_cast<float>(h.n_embd)));
  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    d.attention(layer, layer % 2 == 0 ? local : global);
    d.feed_forward(layer, feed_forward);
  }
  return d.finish({1, logits_cap});
}

}  // namespace flywheel::inline v0::detail
