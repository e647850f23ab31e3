// llama: Llama 1-3, Mistral, Mixtral, SmolLM2, TinyLlama and many others (Touvron et al. 2023; Jiang et al. 2023,
// 2024). GGUF stores the rows of Q and K so that adjacent elements rotate together.
#include "src/model/architectures/decoder.hpp"

namespace flywheel::inline v0::detail {

result<graph::graph> build_llama(const io::archive& file, const hyperparameters& h, graph_output output) {
  decoder d(file, h, output);
  const attention_options attention = d.attention_with(rope_pairs::adjacent);
  d.embed();
  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    d.attention(layer, attention);
    d.feed_forward(layer, {});
  }
  return d.finish();
}

}  // namespace flywheel::inline v0::detail
