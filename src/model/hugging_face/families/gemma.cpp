// Gemma 2, 3 and 4 (the text part of the multimodal ones). Norms of 2 and 3 are stored as their distance from 1.
#include <algorithm>
#include <cmath>

#include "flywheel/detail/try.hpp"
#include "src/model/hugging_face/families/decoder.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

constexpr tensor_row gemma2_tensors[] = {
    {"layers.{}.input_layernorm", "blk.{}.attn_norm", plus_one},
    {"layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm", plus_one},
    {"layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm", plus_one},
    {"layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm", plus_one},
    {"layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm", plus_one},
    {"layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm", plus_one},
    {"norm", "output_norm", plus_one},
    {"lm_head", "", ignored},  // the embedding serves as output
};

constexpr tensor_row gemma4_tensors[] = {
    {"layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"},
    {"layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm"},
    {"layers.{}.pre_feedforward_layernorm_2", "blk.{}.pre_ffw_norm_2"},
    {"layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm"},
    {"layers.{}.post_feedforward_layernorm_1", "blk.{}.post_ffw_norm_1"},
    {"layers.{}.post_feedforward_layernorm_2", "blk.{}.post_ffw_norm_2"},
    {"layers.{}.layer_scalar", "blk.{}.layer_output_scale.weight"},
    {"layers.{}.router.proj", "blk.{}.ffn_gate_inp"},
    {"layers.{}.router.scale", "blk.{}.ffn_gate_inp.scale"},
    {"layers.{}.router.per_expert_scale", "blk.{}.ffn_down_exps.scale"},
    {"layers.{}.experts.gate_up_proj", "blk.{}.ffn_gate_up_exps.weight"},
    {"layers.{}.experts.down_proj", "blk.{}.ffn_down_exps.weight"},
    {"embed_tokens_per_layer", "per_layer_token_embd"},
    {"per_layer_model_projection", "per_layer_model_proj"},
    {"per_layer_projection_norm", "per_layer_proj_norm"},
    {"layers.{}.per_layer_input_gate", "blk.{}.inp_gate"},
    {"layers.{}.per_layer_projection", "blk.{}.proj"},
    {"layers.{}.post_per_layer_input_norm", "blk.{}.post_norm"},
    {"lm_head", "", ignored},
};

// What the published configurations of Gemma 3 leave out.
constexpr default_number gemma3_defaults[] = {
    {"num_attention_heads", 8},
    {"num_key_value_heads", 4},
    {"head_dim", 256},
    {"rms_norm_eps", 1e-6},
    {"max_position_embeddings", 131072},
    {"rope_theta", 1e6},
    {"rope_local_base_freq", 1e4},
    {"sliding_window", 4096},
    {"query_pre_attn_scalar", 256},
    {"vocab_size", 262208},
};
constexpr default_number gemma2_defaults[] = {{"head_dim", 256},
                                              {"attn_logit_softcapping", 50},
                                              {"final_logit_softcapping", 30},
                                              {"sliding_window", 4096},
                                              {"query_pre_attn_scalar", 256}};

/// Scores are scaled by a number of their own, whatever the size of the heads.
void add_scale(model_builder& model) {
  const double scalar = model.config().required("query_pre_attn_scalar");
  model.set_number("attention.scale", scalar > 0 ? 1 / std::sqrt(scalar) : 0);  // otherwise there is a fault
}

result<void> finish_gemma2(model_builder& model) {
  FLYWHEEL_CHECK(add_rope(model));
  add_scale(model);
  const config& c = model.config();
  c.expect_full_attention_interval(2);
  if (const auto x = c.number("attn_logit_softcapping")) model.set_number("attn_logit_softcapping", *x);
  if (const auto x = c.number("final_logit_softcapping")) model.set_number("final_logit_softcapping", *x);
  model.set_count("attention.sliding_window", c.required("sliding_window"));
  return {};
}

result<void> finish_gemma3(model_builder& model) {
  FLYWHEEL_CHECK(add_rope(model));
  add_scale(model);
  const config& c = model.config();
  if (const auto x = c.number("final_logit_softcapping")) model.set_number("final_logit_softcapping", *x);
  const std::uint32_t interval =
      c.full_attention_interval(c.count("sliding_window_pattern|_sliding_window_pattern").value_or(6));
  model.set_count("attention.sliding_window_pattern", interval);
  if (interval != 1) model.set_count("attention.sliding_window", c.required("sliding_window"));
  if (c.flag("use_bidirectional_attention", false)) model.set("attention.causal", false);
  return {};
}

result<void> finish_gemma4(model_builder& model) {
  FLYWHEEL_CHECK(add_rope(model));
  const config& c = model.config();
  const std::uint32_t layers = c.layers(), local_head = c.head_dim();
  const std::uint32_t global_head = c.count("global_head_dim").value_or(local_head);
  const std::uint32_t shared = c.count("num_kv_shared_layers").value_or(0);
  const auto local = c.layers_of_type("sliding_attention");
  if (c.fault()) return *c.fault();
  if (!local) return error{errc::malformed, "the key is missing", c.where() + ": key 'layer_types'"};
  model.set_count("attention.shared_kv_layers", shared);
  model.set_count("embedding_length_per_layer_input", c.count("hidden_size_per_layer_input").value_or(0));
  model.set("attention.sliding_window_pattern", *local);
  model.set_count("attention.sliding_window", c.required("sliding_window"));
  model.set_count("attention.key_length", global_head);
  model.set_count("attention.value_length", global_head);
  model.set_count("attention.key_length_swa", local_head);
  model.set_count("attention.value_length_swa", local_head);
  if (const auto x = c.number("final_logit_softcapping")) model.set_number("final_logit_softcapping", *x);

  // Layers differ: those that share keys and values may have a wider MLP, global ones other key heads.
  const auto per_layer = [&](std::string_view key, auto&& f) {
    std::vector<std::int32_t> numbers;
    for (std::uint32_t i = 0; i < layers; ++i) numbers.push_back(static_cast<std::int32_t>(f(i)));
    model.set(key, std::move(numbers));
  };
  if (c.flag("use_double_wide_mlp", false)) {
    const std::uint32_t ff = c.required("intermediate_size");
    per_layer("feed_forward_length", [&](std::uint32_t i) { return i + shared < layers ? ff : 2 * ff; });
  }
  const auto global_kv = c.count("num_global_key_value_heads"), local_kv = c.count("num_key_value_heads");
  if (global_kv && local_kv)
    per_layer("attention.head_count_kv", [&](std::uint32_t i) { return (*local)[i] ? *local_kv : *global_kv; });

  // Global layers rotate a part of the head, yet as if it were the whole: the rest has a frequency of nearly 0.
  const double global_part = c.number_in(c.rope(), "partial_rotary_factor").value_or(1);
  const double local_part = c.number_in(c.sliding_rope(), "partial_rotary_factor").value_or(1);
  if (c.fault()) return *c.fault();
  if (!(global_part > 0 && global_part <= 1 && local_part > 0 && local_part <= 1) || global_head > 65536 ||
      global_head < 2)
    return error{errc::malformed, "the rotated part of a head is not from 0 to 1",
                 c.where() + ": key 'rope_parameters'"};
  model.set_count("rope.dimension_count", global_head);
  model.set_count("rope.dimension_count_swa", static_cast<std::int64_t>(local_head * local_part));
  std::vector<float> factors(global_head / 2, 1e30F);
  std::fill_n(factors.begin(), static_cast<std::size_t>(global_head * global_part / 2), 1.0F);
  model.add_values("rope_freqs.weight", std::move(factors));
  return {};
}

}  // namespace

constinit const family gemma2_family = {.architecture = "gemma2",
                                        .keys = decoder_keys,
                                        .tensors = {gemma2_tensors, decoder_tensors},
                                        .defaults = gemma2_defaults,
                                        .finish = finish_gemma2};
constinit const family gemma3_family = {.architecture = "gemma3",
                                        .keys = decoder_keys,
                                        .tensors = {gemma2_tensors, decoder_tensors},
                                        .defaults = gemma3_defaults,
                                        .finish = finish_gemma3};
constinit const family gemma4_family = {.architecture = "gemma4",
                                        .keys = decoder_keys,
                                        .tensors = {gemma4_tensors, decoder_tensors},
                                        .finish = finish_gemma4};

}  // namespace flywheel::inline v0::hugging_face
