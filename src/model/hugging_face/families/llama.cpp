// Llama and its relatives: all rotate adjacent pairs, so the rows of Q and K change their order.
#include "src/model/hugging_face/families/decoder.hpp"

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

// Mixtral's experts; none of these names occurs in a dense model.
constexpr tensor_row mixtral_tensors[] = {
    {"layers.{}.block_sparse_moe.gate", "blk.{}.ffn_gate_inp"},
    {"layers.{}.block_sparse_moe.experts.{}.w1.weight", "blk.{}.ffn_gate_exps.weight", expert},
    {"layers.{}.block_sparse_moe.experts.{}.w3.weight", "blk.{}.ffn_up_exps.weight", expert},
    {"layers.{}.block_sparse_moe.experts.{}.w2.weight", "blk.{}.ffn_down_exps.weight", expert},
};

result<void> finish_mistral3(model_builder& model) {
  FLYWHEEL_CHECK(add_llama_numbers(model));
  const config& c = model.config();
  const auto all_dims = c.number_in(c.rope(), "mscale_all_dim");
  if (all_dims && !c.number_in(c.rope(), "attention_factor"))  // which would say it all
    model.set_number("rope.scaling.yarn_log_multiplier", *all_dims);
  if (const auto x = c.number_in(c.rope(), "llama_4_scaling_beta")) model.set_number("attention.temperature_scale", *x);
  return {};
}

/// The architecture rotates all but every fourth layer.
result<void> finish_smollm3(model_builder& model) {
  const config& c = model.config();
  c.expect_off("use_sliding_window");
  const json& rotates = c.find("no_rope_layers");  // 1 where a layer does, in spite of its name
  bool usual = rotates.is_array() ? rotates.size() == c.layers() : c.count("no_rope_layer_interval").value_or(4) == 4;
  if (rotates.is_array())
    for (std::size_t i = 0; i < rotates.size(); ++i) usual = usual && rotates[i] == json((i + 1) % 4 == 0 ? 0 : 1);
  if (!usual)
    c.fail(errc::unsupported, "no_rope_layers", "unsupported: other than every fourth layer without rotation");
  return add_llama_numbers(model);
}

result<void> finish_granite(model_builder& model) {
  FLYWHEEL_CHECK(add_llama_numbers(model));
  const config& c = model.config();
  const auto number = [&](std::string_view from, std::string_view to) {
    if (const auto x = c.number(from)) model.set_number(to, *x);
  };
  number("attention_multiplier", "attention.scale");
  number("embedding_multiplier", "embedding_scale");
  number("residual_multiplier", "residual_scale");
  number("logits_scaling", "logit_scale");
  return {};
}

}  // namespace

constinit const family llama_family = {.architecture = "llama",
                                       .keys = decoder_keys,
                                       .tensors = {mixtral_tensors, decoder_tensors},
                                       .finish = add_llama_numbers,
                                       .interleaved_rotary = true};
constinit const family smollm3_family = {.architecture = "smollm3",
                                         .keys = decoder_keys,
                                         .tensors = {decoder_tensors},
                                         .finish = finish_smollm3,
                                         .interleaved_rotary = true};
constinit const family mistral3_family = {.architecture = "mistral3",
                                          .keys = decoder_keys,
                                          .tensors = {decoder_tensors},
                                          .finish = finish_mistral3,
                                          .interleaved_rotary = true};
constinit const family granite_family = {.architecture = "granite",
                                         .keys = decoder_keys,
                                         .tensors = {decoder_tensors},
                                         .finish = finish_granite,
                                         .interleaved_rotary = true};

}  // namespace flywheel::inline v0::hugging_face
