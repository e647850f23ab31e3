// Phi-3 and Phi-4: Q, K, V in one tensor, gate and up in another; longrope factors from the configuration.
#include <cmath>

#include "flywheel/detail/try.hpp"
#include "src/model/hugging_face/families/decoder.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

constexpr tensor_row phi3_tensors[] = {
    {"layers.{}.self_attn.qkv_proj", "blk.{}.attn_qkv"},
    {"layers.{}.mlp.gate_up_proj", "blk.{}.ffn_up"},
};

/// Divisors of the frequencies, one for each rotated pair.
result<std::vector<float>> factors(const config& c, std::string_view key, std::int64_t pairs) {
  const json& list = member(c.rope(), key);
  std::vector<float> values;
  if (list.is_array() && list.size() == static_cast<std::size_t>(pairs))
    for (const json& x : list)
      if (x.is_number()) values.push_back(x.get<float>());
  if (values.size() != static_cast<std::size_t>(pairs) || values.empty())
    return error{errc::malformed, "the value must be a list of " + std::to_string(pairs) + " numbers",
                 c.where() + ": key '" + std::string(key) + "'"};
  return values;
}

result<void> finish_phi3(model_builder& model) {
  FLYWHEEL_CHECK(add_rope(model));
  const config& c = model.config();
  const double part = c.rotary_part(1);
  const std::int64_t heads = c.heads(), hidden = c.required("hidden_size");
  const std::uint32_t context = c.required("max_position_embeddings");
  constexpr std::string_view key = "original_max_position_embeddings";
  const auto in_rope = c.count_in(c.rope(), key), beside = c.count(key);
  const std::uint32_t original = in_rope ? *in_rope : beside.value_or(context);
  if (original < 2) c.fail(errc::malformed, key, "the number is too small");
  const auto magnitude = c.number_in(c.rope(), "attention_factor");
  if (c.fault()) return *c.fault();
  const std::int64_t rotated = static_cast<std::int64_t>(part * static_cast<double>(hidden)) / heads;
  model.set_count("rope.dimension_count", rotated);
  model.set_count("rope.scaling.original_context_length", original);
  model.set_count("attention.sliding_window", c.count("sliding_window").value_or(0));  // 0: none
  if (!member(c.rope(), "long_factor").is_array()) return {};

  const double scale = static_cast<double>(context) / original;
  const double usual = scale > 1 ? std::sqrt(1 + std::log(scale) / std::log(original)) : 1;
  model.set_number("rope.scaling.attn_factor", magnitude.value_or(usual));
  FLYWHEEL_TRY(std::vector<float> long_factors, factors(c, "long_factor", rotated / 2));
  FLYWHEEL_TRY(std::vector<float> short_factors, factors(c, "short_factor", rotated / 2));
  model.add_values("rope_factors_long.weight", std::move(long_factors));
  model.add_values("rope_factors_short.weight", std::move(short_factors));
  return {};
}

}  // namespace

constinit const family phi3_family = {
    .architecture = "phi3", .keys = decoder_keys, .tensors = {phi3_tensors, decoder_tensors}, .finish = finish_phi3};

}  // namespace flywheel::inline v0::hugging_face
