// A family of Hugging Face models: what its configuration and its tensors are called in GGUF, as tables, and a function
// for what tables cannot say. To add one: a page in families/, and a line in families.inc.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "src/model/hugging_face/model_builder.hpp"

namespace flywheel::inline v0::hugging_face {

enum class key_type : std::uint8_t { count, number };

/// A number of config.json and the metadata key it becomes, after "<architecture>.".
struct key_row {
  std::string_view from;  ///< May name alternatives: "hidden_size|n_embd".
  std::string_view to;
  key_type type = key_type::count;
  bool required = false;
};

/// Adds to the model what one tensor of the folder becomes. `to` is the name, or two names with a bar between.
using change = result<void> (*)(model_builder& model, const io::tensor_info& tensor, const tensor_names& to);

/// A tensor's name without "model.", and its name in GGUF. "{}" is the layer's number; a second one an expert's. A name
/// that is not complete stands for NAME.weight and NAME.bias.
struct tensor_row {
  std::string_view from, to;
  change how = nullptr;  ///< Null: as it is.
};

struct family {
  std::string_view architecture;  ///< general.architecture
  std::span<const key_row> keys;
  std::array<std::span<const tensor_row>, 3> tensors;  ///< The first row that fits counts.
  std::span<const default_number> defaults = {};
  /// Further metadata and tensors; may be null.
  result<void> (*finish)(model_builder& model) = nullptr;
  std::string_view prefix = "model.";  ///< In front of most names.
  bool interleaved_rotary = false;     ///< Rows of Q and K are stored in pairs (2i, 2i + 1) for NORM rotary.
};

/// Null when no family takes the architecture, such as "LlamaForCausalLM".
[[nodiscard]] const family* find_family(std::string_view architecture) noexcept;
/// The first that gives models this general.architecture; null: none.
[[nodiscard]] const family* family_of(std::string_view gguf_architecture) noexcept;
/// "BertModel, Gemma2ForCausalLM, ...", for messages.
[[nodiscard]] std::string known_architectures();

/// Rotary base and scaling, from rope_parameters, rope_scaling, rope_theta, rope_local_base_freq.
[[nodiscard]] result<void> add_rope(model_builder& model);
/// vocab_size and rope.dimension_count, as llama and its relatives have them, after add_rope.
[[nodiscard]] result<void> add_llama_numbers(model_builder& model);

// Changes.
[[nodiscard]] result<void> ignored(model_builder&, const io::tensor_info&, const tensor_names&);
/// Rows of each head from halves to pairs, where the family rotates pairs.
[[nodiscard]] result<void> rotary_rows(model_builder&, const io::tensor_info&, const tensor_names&);
/// x + 1: norms that are stored as their distance from 1.
[[nodiscard]] result<void> plus_one(model_builder&, const io::tensor_info&, const tensor_names&);
/// One expert's matrix of a tensor with all of them.
[[nodiscard]] result<void> expert(model_builder&, const io::tensor_info&, const tensor_names&);
/// [experts, 2n, k]: the first n rows of each, and the last n.
[[nodiscard]] result<void> expert_halves(model_builder&, const io::tensor_info&, const tensor_names&);

#define FLYWHEEL_FAMILY(name, page) extern const family page##_family;
#include "src/model/hugging_face/families.inc"
#undef FLYWHEEL_FAMILY

}  // namespace flywheel::inline v0::hugging_face
