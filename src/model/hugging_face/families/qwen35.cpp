// Qwen3.5: gated delta-net layers beside full attention. Norms are stored as their distance from 1, but for the delta
// net's own. Hugging Face keeps the value heads of a key head together; GGUF counts them round: value head h uses key
// head h mod n. So everything with value heads in it changes their order.
#include <cmath>

#include "flywheel/detail/try.hpp"
#include "src/model/hugging_face/families/decoder.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

struct delta_net {
  std::int64_t key_heads, value_heads, key_dim, value_dim;

  /// The stored place of value head h.
  [[nodiscard]] std::int64_t stored(std::int64_t h) const noexcept {
    return h % key_heads * (value_heads / key_heads) + h / key_heads;
  }
};

result<delta_net> read_delta_net(const model_builder& model) {
  const config& c = model.config();
  const delta_net n{c.required("linear_num_key_heads"), c.required("linear_num_value_heads"),
                    c.required("linear_key_head_dim"), c.required("linear_value_head_dim")};
  if (c.fault()) return *c.fault();
  for (const std::int64_t number : {n.key_heads, n.value_heads, n.key_dim, n.value_dim})
    if (number > 65536)
      return error{errc::malformed, "the numbers of the delta net are too large", c.where() + ": keys 'linear_*'"};
  if (n.value_heads % n.key_heads != 0)
    return error{errc::malformed, "the key heads do not divide the value heads",
                 c.where() + ": key 'linear_num_value_heads'"};
  return n;
}

/// Rows from `first` on are value heads of `dim` rows each.
result<void> value_head_rows(model_builder& model, const io::tensor_info& tensor, const tensor_names& to,
                             const delta_net& n, std::int64_t first, std::int64_t dim, const shape& dims,
                             float (*value)(float) = nullptr, float (*inverse)(float) = nullptr) {
  if (dims.rank() == 0 || dims[0] != first + n.value_heads * dim)
    return model.wrong(tensor, "the shape " + tensor.dims.to_string() + " does not fit " +
                                   std::to_string(n.value_heads) + " value heads of " + std::to_string(dim));
  const std::int64_t cols = dims.rank() == 1 ? 1 : dims.cols();
  gathered_rows rows{.from = {tensor}, .cols = cols};
  if (value != nullptr) rows.value = value, rows.inverse = inverse;
  if (n.key_heads != n.value_heads)
    rows.row = [=](std::int64_t r) {
      return r < first ? r : first + n.stored((r - first) / dim) * dim + (r - first) % dim;
    };
  return model.add(to.first, dims, std::move(rows));
}

result<void> qkv(model_builder& model, const io::tensor_info& tensor, const tensor_names& to) {
  FLYWHEEL_TRY(const delta_net n, read_delta_net(model));
  return value_head_rows(model, tensor, to, n, 2 * n.key_heads * n.key_dim, n.value_dim, tensor.dims);
}
/// [channels, 1, kernel] as [channels, kernel].
result<void> convolution(model_builder& model, const io::tensor_info& tensor, const tensor_names& to) {
  FLYWHEEL_TRY(const delta_net n, read_delta_net(model));
  if (tensor.dims.rank() != 3 || tensor.dims[1] != 1)
    return model.wrong(tensor, "the shape " + tensor.dims.to_string() + " is not [channels, 1, kernel]");
  return value_head_rows(model, tensor, to, n, 2 * n.key_heads * n.key_dim, n.value_dim,
                         {tensor.dims[0], tensor.dims[2]});
}
result<void> value_rows(model_builder& model, const io::tensor_info& tensor, const tensor_names& to) {
  FLYWHEEL_TRY(const delta_net n, read_delta_net(model));
  return value_head_rows(model, tensor, to, n, 0, n.value_dim, tensor.dims);
}
result<void> per_value_head(model_builder& model, const io::tensor_info& tensor, const tensor_names& to) {
  FLYWHEEL_TRY(const delta_net n, read_delta_net(model));
  return value_head_rows(model, tensor, to, n, 0, 1, tensor.dims);
}
/// A_log: the state decays by exp(-exp(A_log) * ...).
result<void> decay(model_builder& model, const io::tensor_info& tensor, const tensor_names& to) {
  FLYWHEEL_TRY(const delta_net n, read_delta_net(model));
  return value_head_rows(
      model, tensor, to, n, 0, 1, tensor.dims, [](float x) { return -std::exp(x); },
      [](float x) { return std::log(-x); });
}
result<void> value_columns(model_builder& model, const io::tensor_info& tensor, const tensor_names& to) {
  FLYWHEEL_TRY(const delta_net n, read_delta_net(model));
  const std::int64_t dim = n.value_dim;
  if (tensor.dims.rank() != 2 || tensor.dims[1] != n.value_heads * dim)
    return model.wrong(tensor, "the shape " + tensor.dims.to_string() + " does not fit " +
                                   std::to_string(n.value_heads) + " value heads of " + std::to_string(dim));
  gathered_rows rows{.from = {tensor}, .cols = tensor.dims.cols()};
  if (n.key_heads != n.value_heads) rows.column = [=](std::int64_t c) { return n.stored(c / dim) * dim + c % dim; };
  return model.add(to.first, tensor.dims, std::move(rows));
}

constexpr tensor_row qwen35_tensors[] = {
    {"layers.{}.input_layernorm", "blk.{}.attn_norm", plus_one},
    {"layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm", plus_one},
    {"layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm", plus_one},
    {"layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm", plus_one},
    {"norm", "output_norm", plus_one},
    {"layers.{}.linear_attn.in_proj_qkv", "blk.{}.attn_qkv", qkv},
    {"layers.{}.linear_attn.in_proj_z", "blk.{}.attn_gate", value_rows},
    {"layers.{}.linear_attn.in_proj_b", "blk.{}.ssm_beta", per_value_head},
    {"layers.{}.linear_attn.in_proj_a", "blk.{}.ssm_alpha", per_value_head},
    {"layers.{}.linear_attn.A_log", "blk.{}.ssm_a", decay},
    {"layers.{}.linear_attn.dt_bias", "blk.{}.ssm_dt.bias", per_value_head},
    {"layers.{}.linear_attn.conv1d", "blk.{}.ssm_conv1d", convolution},
    {"layers.{}.linear_attn.norm", "blk.{}.ssm_norm"},
    {"layers.{}.linear_attn.out_proj", "blk.{}.ssm_out", value_columns},
    {"layers.{}.mlp.shared_expert.gate_proj", "blk.{}.ffn_gate_shexp"},
    {"layers.{}.mlp.shared_expert.up_proj", "blk.{}.ffn_up_shexp"},
    {"layers.{}.mlp.shared_expert.down_proj", "blk.{}.ffn_down_shexp"},
    {"layers.{}.mlp.shared_expert_gate", "blk.{}.ffn_gate_inp_shexp"},
};

result<void> finish_qwen35(model_builder& model) {
  FLYWHEEL_CHECK(add_rope(model));
  FLYWHEEL_TRY(const delta_net n, read_delta_net(model));
  const config& c = model.config();
  model.set_count("ssm.conv_kernel", c.required("linear_conv_kernel_dim"));
  model.set_count("ssm.state_size", n.key_dim);
  model.set_count("ssm.group_count", n.key_heads);
  model.set_count("ssm.time_step_rank", n.value_heads);
  model.set_count("ssm.inner_size", n.value_heads * n.value_dim);
  if (auto recurrent = c.layers_of_type("linear_attention"))
    model.set("attention.recurrent_layers", *std::move(recurrent));
  model.set_count("full_attention_interval", c.full_attention_interval(c.count("full_attention_interval").value_or(4)));
  model.set_count("rope.dimension_count", static_cast<std::int64_t>(c.head_dim() * c.rotary_part(0.25)));

  std::vector<std::int32_t> sections;  // of the rotation: time, height, width, nothing
  for (const json& n_pairs : member(c.rope(), "mrope_section"))
    if (n_pairs.is_number_unsigned() && n_pairs.get<std::uint64_t>() < 65536 && sections.size() < 4)
      sections.push_back(n_pairs.get<std::int32_t>());
  if (sections.empty()) sections = {11, 11, 10};
  sections.resize(4);
  model.set("rope.dimension_sections", std::move(sections));
  return {};
}

}  // namespace

constinit const family qwen35_family = {.architecture = "qwen35",
                                        .keys = decoder_keys,
                                        .tensors = {qwen35_tensors, qwen_expert_tensors, decoder_tensors},
                                        .finish = finish_qwen35};
constinit const family qwen35moe_family = {.architecture = "qwen35moe",
                                           .keys = decoder_keys,
                                           .tensors = {qwen35_tensors, qwen_expert_tensors, decoder_tensors},
                                           .finish = finish_qwen35};

}  // namespace flywheel::inline v0::hugging_face
