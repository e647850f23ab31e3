// Qwen2, Qwen3 (embedding models too: their pooling is in the folder 1_Pooling) and Qwen3 with experts.
#include "src/model/hugging_face/families/decoder.hpp"

namespace flywheel::inline v0::hugging_face {

constinit const family qwen2_family = {
    .architecture = "qwen2", .keys = decoder_keys, .tensors = {decoder_tensors}, .finish = add_rope};
constinit const family qwen3_family = {
    .architecture = "qwen3", .keys = decoder_keys, .tensors = {decoder_tensors}, .finish = add_rope};
constinit const family qwen3moe_family = {.architecture = "qwen3moe",
                                          .keys = decoder_keys,
                                          .tensors = {qwen_expert_tensors, decoder_tensors},
                                          .finish = add_rope};

}  // namespace flywheel::inline v0::hugging_face
