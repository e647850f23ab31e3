// qwen3 and qwen3moe (Yang et al. 2025): no biases, but a norm of every head of queries and keys before the rotation;
// the size of a head is the metadata's. With experts, the weights of the chosen ones add up to 1.
#include "src/model/architectures/decoder.hpp"

namespace flywheel::inline v0::detail {

result<graph::graph> build_qwen3(const io::archive& file, const hyperparameters& h, graph_output output) {
  decoder d(file, h, output);
  attention_options attention = d.attention_with(rope_pairs::halves);
  attention.norm_heads = true;
  d.embed();
  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    d.attention(layer, attention);
    d.feed_forward(layer, {});
  }
  return d.finish();
}

}  // namespace flywheel::inline v0::detail
