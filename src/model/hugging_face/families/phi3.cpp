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
  const double part =
      c.number_in(c.rope(), "partial_rotary_factor").value_or(c.number("partial_rotary_factor").value_or(1));
  const std::int64_t heads = c.heads(), hidden = c.required("hidden_size");
  const double context = c.required("max_position_embeddings");
  const double original = c.number("original_max_position_embeddings").value_or(context);
  if (c.fault()) return *c.fault();
  if (!(part > 0 && part <= 1) || !(original > 1 && original <= 1e9))
    return error{errc::malformed, "the numbers of the rotation make no sense", c.where()};
  const std::int64_t rotated = static_cast<std::int64_t>(part * static_cast<double>(hidden)) / heads;
  model.set_count("rope.dimension_count", rotated);
  model.set_count("rope.scaling.original_context_length", static_cast<std::int64_t>(original));
  model.set_count("attention.sliding_window", c.count("sliding_window").value_or(0));  // 0: none
  if (!member(c.rope(), "long_factor").is_array()) return {};

  const double scale = context / original;
  model.set_number("rope.scaling.attn_factor", scale > 1 ? std::sqrt(1 + std::log(scale) / std::log(original)) : 1);
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
