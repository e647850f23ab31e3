// smollm3: llama in which every fourth layer does not rotate queries and keys (NoPE, Kazemnejad et al. 2023).
#include "src/model/architectures/decoder.hpp"

namespace flywheel::inline v0::detail {

result<graph::graph> build_smollm3(const io::archive& file, const hyperparameters& h, graph_output output) {
  decoder d(file, h, output);
  const attention_options rotating = d.attention_with(rope_pairs::adjacent);
  attention_options plain = rotating;
  plain.rope.reset();
  d.embed();
  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    d.attention(layer, (layer + 1) % 4 == 0 ? plain : rotating);
    d.feed_forward(layer, {});
  }
  return d.finish();
}

}  // namespace flywheel::inline v0::detail
