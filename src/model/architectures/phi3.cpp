// phi3: Phi-3, Phi-3.5 and Phi-4 (Abdin et al. 2024): queries, keys and values in one matrix, gate and up in another;
// every layer has a sliding window unless its size is 0; long contexts by factors per rotating pair (LongRoPE).
#include "src/model/architectures/decoder.hpp"

namespace flywheel::inline v0::detail {

result<graph::graph> build_phi3(const io::archive& file, const hyperparameters& h, graph_output output) {
  decoder d(file, h, output);
  attention_options attention = d.attention_with(rope_pairs::halves);
  attention.scores.window = h.window;
  d.embed();
  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    d.attention(layer, attention);
    d.feed_forward(layer, {});
  }
  return d.finish();
}

}  // namespace flywheel::inline v0::detail
