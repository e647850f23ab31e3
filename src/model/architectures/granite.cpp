// granite: IBM Granite 3 and 4 dense models: llama with four constant multipliers: of embeddings, of what blocks add to
// the residual stream, of attention scores, and 1 / logit_scale of the logits.
#include "src/model/architectures/decoder.hpp"
#include "src/model/key_reader.hpp"

namespace flywheel::inline v0::detail {

result<graph::graph> build_granite(const io::archive& file, const hyperparameters& h, graph_output output) {
  key_reader keys(file.metadata(), h.architecture);
  const float embedding = keys.float_or("embedding_scale", 1, 1e-6, 1e6);
  const float residual = keys.float_or("residual_scale", 1, 1e-6, 1e6);
  const float logits = keys.float_or("logit_scale", 1, 1e-6, 1e6);
  const bool rotates = keys.boolean_or("rope.scaling.finetuned", true);  // how files say that there is no rotation
  if (keys.failure) return *keys.failure;

  decoder d(file, h, output);
  attention_options attention = d.attention_with(rope_pairs::adjacent);
  attention.residual.scale = residual;
  if (!rotates) attention.rope.reset();
  feed_forward_options feed_forward;
  feed_forward.residual.scale = residual;
  d.embed(embedding);
  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    d.attention(layer, attention);
    d.feed_forward(layer, feed_forward);
  }
  return d.finish({1 / logits, 0});
}

}  // namespace flywheel::inline v0::detail
