// Qwen2, Qwen3 (embedding models too: their pooling is in the folder 1_Pooling) and Qwen3 with experts.
#include "src/model/hugging_face/families/decoder.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

result<void> finish_qwen(model_builder& model) {
  const config& c = model.config();
  // The first max_window_layers layers have full attention in any case.
  if (c.count("max_window_layers").value_or(0) < c.layers()) c.expect_off("use_sliding_window");
  return add_rope(model);
}

}  // namespace

constinit const family qwen2_family = {
    .architecture = "qwen2", .keys = decoder_keys, .tensors = {decoder_tensors}, .finish = finish_qwen};
constinit const family qwen3_family = {
    .architecture = "qwen3", .keys = decoder_keys, .tensors = {decoder_tensors}, .finish = finish_qwen};
constinit const family qwen3moe_family = {.architecture = "qwen3moe",
                                          .keys = decoder_keys,
                                          .tensors = {qwen_expert_tensors, decoder_tensors},
                                          .finish = finish_qwen};

}  // namespace flywheel::inline v0::hugging_face
