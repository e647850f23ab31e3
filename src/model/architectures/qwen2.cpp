// qwen2: Qwen 1.5 to 2.5 (Yang et al. 2024): llama with biases on queries, keys and values, rotating the halves of a
// head against each other.
#include "src/model/architectures/decoder.hpp"

namespace flywheel::inline v0::detail {

result<graph::graph> build_qwen2(const io::archive& file, const hyperparameters& h, graph_output output) {
  decoder d(file, h, output);
  const attention_options attention = d.attention_with(rope_pairs::halves);
  d.embed();
  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    d.attention(layer, attention);
    d.feed_forward(layer, {});
  }
  return d.finish();
}

}  // namespace flywheel::inline v0::detail
