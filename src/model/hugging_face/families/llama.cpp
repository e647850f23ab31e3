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
  if (const auto x = c.number_in(c.rope(), "mscale_all_dim")) model.set_number("rope.scaling.yarn_log_multiplier", *x);
  if (const auto x = c.number_in(c.rope(), "llama_4_scaling_beta")) model.set_number("attention.temperature_scale", *x);
  return {};
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
                                         .finish = add_llama_numbers,
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
