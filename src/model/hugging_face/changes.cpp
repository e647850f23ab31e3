// What families do with tensors, and the numbers that many of them have.
#include <cmath>
#include <numbers>

#include "flywheel/detail/try.hpp"
#include "src/io/reading.hpp"
#include "src/model/hugging_face/family.hpp"

namespace flywheel::inline v0::hugging_face {

result<void> ignored(model_builder&, const io::tensor_info&, const tensor_names&) { return {}; }

result<void> rotary_rows(model_builder& model, const io::tensor_info& tensor, const tensor_names& to) {
  if (!model.family().interleaved_rotary) return model.add(to.first, tensor);
  const std::int64_t head = model.config().head_dim();
  if (tensor.dims.rank() == 0 || head <= 0 || head % 2 != 0 || tensor.dims[0] % head != 0)
    return model.wrong(
        tensor, "the shape " + tensor.dims.to_string() + " does not fit heads of " + std::to_string(head) + " rows");
  const std::int64_t cols = tensor.dims.rank() == 1 ? 1 : tensor.dims.cols();  // of a bias, each element is a row
  return model.add(to.first, tensor.dims, {.from = {tensor}, .cols = cols, .row = [head](std::int64_t r) {
                                             const std::int64_t i = r % head;
                                             return r - i + i / 2 + i % 2 * (head / 2);
                                           }});
}

result<void> plus_one(model_builder& model, const io::tensor_info& tensor, const tensor_names& to) {
  return model.add(to.first, tensor.dims,
                   {.from = {tensor},
                    .cols = tensor.dims.cols(),
                    .value = [](float x) { return x + 1; },
                    .inverse = [](float x) { return x - 1; }});
}

result<void> expert(model_builder& model, const io::tensor_info& tensor, const tensor_names& to) {
  return model.add_expert(to.first, to.expert, tensor);
}

result<void> expert_halves(model_builder& model, const io::tensor_info& tensor, const tensor_names& to) {
  if (tensor.dims.rank() != 3 || tensor.dims[1] % 2 != 0)
    return model.wrong(tensor, "the shape " + tensor.dims.to_string() + " is not [experts, 2 n, k]");
  const std::int64_t n = tensor.dims[1] / 2;
  const shape dims{tensor.dims[0], n, tensor.dims[2]};
  for (const std::int64_t half : {0, 1})
    FLYWHEEL_CHECK(model.add(half == 0 ? to.first : to.second, dims,
                             {.from = {tensor}, .cols = dims.cols(), .row = [n, half](std::int64_t r) {
                                return r / n * 2 * n + half * n + r % n;
                              }}));
  return {};
}

namespace {

/// Llama 3.1's scaling: low frequencies are divided by `factor`, high ones stay, and those between change gradually.
result<void> add_llama3_factors(model_builder& model, const json& rope) {
  const config& c = model.config();
  const double base = c.number_in(rope, "rope_theta").value_or(c.number("rope_theta").value_or(10000));
  const double factor = c.number_in(rope, "factor").value_or(8);
  const double low = c.number_in(rope, "low_freq_factor").value_or(1);
  const double high = c.number_in(rope, "high_freq_factor").value_or(4);
  const double context = c.number_in(rope, "original_max_position_embeddings").value_or(8192);
  const std::uint32_t head = c.head_dim();
  if (c.fault()) return *c.fault();
  if (!(base > 1) || !(factor > 0) || !(low > 0) || !(high > low) || !(context > 0) || head > 65536)
    return error{errc::malformed, "the numbers of the llama3 scaling make no sense",
                 c.where() + ": key 'rope_scaling'"};
  std::vector<float> factors;
  for (std::uint32_t i = 0; i < head; i += 2) {
    const double wavelength = 2 * std::numbers::pi * std::pow(base, static_cast<double>(i) / head);
    const double smooth = (context / wavelength - low) / (high - low);
    factors.push_back(static_cast<float>(wavelength < context / high  ? 1
                                         : wavelength > context / low ? factor
                                                                      : 1 / ((1 - smooth) / factor + smooth)));
  }
  model.add_values("rope_freqs.weight", std::move(factors));
  return {};
}

}  // namespace

result<void> add_rope(model_builder& model) {
  const config& c = model.config();
  const json& rope = c.rope();
  const auto number = [&](std::string_view from, std::string_view to) {
    if (const auto value = c.number_in(rope, from)) model.set_number(to, *value);
  };
  if (const auto base = c.number("rope_theta|rotary_emb_base")) model.set_number("rope.freq_base", *base);
  number("rope_theta", "rope.freq_base");
  if (const auto base = c.number("rope_local_base_freq")) model.set_number("rope.freq_base_swa", *base);
  if (const auto base = c.number_in(c.sliding_rope(), "rope_theta")) model.set_number("rope.freq_base_swa", *base);

  const json& named = member(rope, "rope_type");
  const std::string_view kind = text_of(named.is_null() ? member(rope, "type") : named);
  if (kind == "linear" || kind == "yarn") {
    model.set("rope.scaling.type", std::string(kind));
    number("factor", "rope.scaling.factor");
  }
  if (kind == "yarn") {
    const auto original = c.count_in(rope, "original_max_position_embeddings");
    model.set_count("rope.scaling.original_context_length",
                    original ? *original : c.required("max_position_embeddings"));
    if (c.number_in(rope, "extrapolation_factor").value_or(1) != 1)
      c.fail(errc::unsupported, "extrapolation_factor", "unsupported: YaRN that extrapolates by halves");
    number("attn_factor", "rope.scaling.attn_factor");
    // The whole magnitude here; in GGUF what it is beside YaRN's own.
    if (const auto magnitude = c.number_in(rope, "attention_factor")) {
      const double factor = c.number_in(rope, "factor").value_or(1);
      if (!(*magnitude > 0) || !(factor >= 1))
        c.fail(errc::malformed, "attention_factor", "it must be more than 0, and the factor at least 1");
      else
        model.set_number("rope.scaling.attn_factor", *magnitude / (1 + 0.1 * std::log(factor)));
    }
    number("beta_fast", "rope.scaling.yarn_beta_fast");
    number("beta_slow", "rope.scaling.yarn_beta_slow");
  } else if (kind == "longrope" || kind == "su") {
    model.set("rope.scaling.type", std::string("longrope"));
  } else if (kind == "llama3") {
    FLYWHEEL_CHECK(add_llama3_factors(model, rope));
  } else if (!kind.empty() && kind != "linear" && kind != "default" && kind != "mrope" && kind != "proportional") {
    return error{
        errc::unsupported,
        "unsupported rotary scaling " + io::detail::in_quotes(kind) + "; known are linear, yarn, longrope and llama3",
        c.where() + ": key 'rope_scaling'"};
  }
  if (c.fault()) return *c.fault();
  return {};
}

result<void> add_llama_numbers(model_builder& model) {
  FLYWHEEL_CHECK(add_rope(model));
  model.set_count("vocab_size", model.config().required("vocab_size"));
  model.set_count("rope.dimension_count", model.config().head_dim());
  return {};
}

}  // namespace flywheel::inline v0::hugging_face
