// What the tensors of an adapter are called: the base's tensor with one of these behind.
#pragma once

#include <string_view>

namespace flywheel::inline v0::detail {

inline constexpr std::string_view lora_a = ".lora_a", lora_b = ".lora_b", lora_magnitude = ".lora_magnitude";
/// Of these two weights, one is looked up and the other may be the same tensor.
inline constexpr std::string_view token_embeddings = "token_embd.weight", output_head = "output.weight";

struct adapter_tensor_name {
  std::string_view weight;  ///< Of the base.
  std::string_view part;    ///< One of the endings above; empty: in place of the weight.
};

[[nodiscard]] constexpr adapter_tensor_name split_adapter_tensor(std::string_view name) noexcept {
  for (const std::string_view part : {lora_a, lora_b, lora_magnitude})
    if (name.ends_with(part)) return {name.substr(0, name.size() - part.size()), part};
  return {name, {}};
}

}  // namespace flywheel::inline v0::detail
