// gpt-oss (OpenAI 2025): every head has a learned sink, a logit that takes part in the softmax and has no value; even
// layers see a sliding window; biases everywhere; experts with a clamped activation, weighted by a softmax over the
// chosen ones, which is what renormalized weights are.
#include "src/model/architectures/decoder.hpp"

namespace flywheel::inline v0::detail {

result<graph::graph> build_gpt_oss(const io::archive& file, const hyperparameters& h, graph_output output) {
  decoder d(file, h, output);
  attention_options global = d.attention_with(rope_pairs::halves);
  global.sinks = true;
  attention_options local = global;
  local.scores.window = h.window;
  feed_forward_options experts;
  experts.residual.norm = "post_attention_norm";
  experts.act = activation::clamped_swish;
  d.embed();
  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    d.attention(layer, layer % 2 == 0 ? local : global);
    d.feed_forward(layer, experts);
  }
  return d.finish();
}

}  // namespace flywheel::inline v0::detail
