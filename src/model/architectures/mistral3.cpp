// mistral3: Ministral 3 and its relatives: llama with YaRN; queries far into the context are scaled up, by
// 1 + beta ln(1 + floor(position / length)), where the metadata give beta; experts where they give some.
#include "src/model/architectures/decoder.hpp"
#include "src/model/key_reader.hpp"

namespace flywheel::inline v0::detail {

result<graph::graph> build_mistral3(const io::archive& file, const hyperparameters& h, graph_output output) {
  key_reader keys(file.metadata(), h.architecture);
  decoder d(file, h, output);
  attention_options attention = d.attention_with(rope_pairs::adjacent);
  attention.scores.temperature = keys.float_or("attention.temperature_scale", 0, 0, 1e6);
  attention.scores.temperature_length =
      keys.integer_or("attention.temperature_length", h.rope.original_context, 0, std::int64_t{1} << 31);
  if (attention.scores.temperature != 0 && attention.scores.temperature_length == 0)
    keys.refuse("attention.temperature_scale", errc::malformed,
                "needs rope.scaling.original_context_length or attention.temperature_length");
  if (keys.failure) return *keys.failure;
  d.embed();
  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    d.attention(layer, attention);
    d.feed_forward(layer, {});
  }
  return d.finish();
}

}  // namespace flywheel::inline v0::detail
