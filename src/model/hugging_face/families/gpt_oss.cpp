// gpt-oss: experts in MXFP4 (two tensors) or in 16 bits (transposed); the rows of gate and up alternate.
#include "flywheel/detail/try.hpp"
#include "src/model/hugging_face/families/decoder.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

/// Alternating rows for two names, all of them for one.
template <class F>
result<void> each_part(const tensor_names& to, std::int64_t n, F&& f) {
  if (to.second.empty()) return f(to.first, 0, 1, n);
  FLYWHEEL_CHECK(f(to.first, 0, 2, n / 2));
  return f(to.second, 1, 2, n / 2);
}

result<void> mxfp4_blocks(model_builder& model, const io::tensor_info& blocks, const tensor_names& to) {
  const io::tensor_info* scales = model.sibling(blocks, "_blocks", "_scales");
  if (scales == nullptr) return model.wrong(blocks, "the scales of these blocks are missing");
  const shape& d = blocks.dims;
  if (blocks.type != dtype::u8 || d.rank() != 4 || d[3] != 16 || d.elements() == 0 ||
      (!to.second.empty() && d[1] % 2 != 0))
    return model.wrong(blocks, "the shape " + d.to_string() + " is not [experts, rows, blocks, 16] of U8");
  if (scales->type != dtype::u8 || scales->dims != shape{d[0], d[1], d[2]})
    return model.wrong(*scales, "the scales do not fit the blocks");
  return each_part(to, d[1], [&](const std::string& name, std::int64_t start, std::int64_t step, std::int64_t n) {
    model.add_computed(name, dtype::mxfp4, {d[0], n, d[2] * 32}, d[2] * 32,
                       make_mxfp4(model.files().weights(), {blocks, *scales, start, step, n}));
    return result<void>{};
  });
}

result<void> transposed_matrices(model_builder& model, const io::tensor_info& tensor, const tensor_names& to) {
  const shape& d = tensor.dims;
  if (d.rank() != 3 || d.elements() == 0 || (!to.second.empty() && d[2] % 2 != 0) ||
      (tensor.type != dtype::f32 && tensor.type != dtype::f16 && tensor.type != dtype::bf16))
    return model.wrong(tensor, "the shape " + d.to_string() + " is not [experts, in, out] of floats");
  return each_part(to, d[2], [&](const std::string& name, std::int64_t start, std::int64_t step, std::int64_t n) {
    model.add_computed(name, tensor.type, {d[0], n, d[1]}, d[1],
                       make_transposed(model.files().weights(), {tensor, start, step, n}));
    return result<void>{};
  });
}

result<void> alternating_bias(model_builder& model, const io::tensor_info& tensor, const tensor_names& to) {
  const shape& d = tensor.dims;
  if (d.rank() != 2 || d[1] % 2 != 0)
    return model.wrong(tensor, "the shape " + d.to_string() + " is not [experts, 2 n]");
  return each_part(to, d[1], [&](const std::string& name, std::int64_t start, std::int64_t step, std::int64_t n) {
    const std::int64_t all = d[1];
    return model.add(name, {d[0], n}, {.from = {tensor}, .cols = 1, .row = [=](std::int64_t r) {
                                         return r / n * all + start + r % n * step;
                                       }});
  });
}

constexpr tensor_row gpt_oss_tensors[] = {
    {"layers.{}.self_attn.sinks", "blk.{}.attn_sinks.weight"},
    {"layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"},
    {"layers.{}.mlp.router", "blk.{}.ffn_gate_inp"},
    {"layers.{}.mlp.experts.gate_up_proj_blocks", "blk.{}.ffn_gate_exps.weight|blk.{}.ffn_up_exps.weight",
     mxfp4_blocks},
    {"layers.{}.mlp.experts.gate_up_proj_scales", "", ignored},  // read with the blocks
    {"layers.{}.mlp.experts.gate_up_proj", "blk.{}.ffn_gate_exps.weight|blk.{}.ffn_up_exps.weight",
     transposed_matrices},
    {"layers.{}.mlp.experts.gate_up_proj_bias", "blk.{}.ffn_gate_exps.bias|blk.{}.ffn_up_exps.bias", alternating_bias},
    {"layers.{}.mlp.experts.down_proj_blocks", "blk.{}.ffn_down_exps.weight", mxfp4_blocks},
    {"layers.{}.mlp.experts.down_proj_scales", "", ignored},
    {"layers.{}.mlp.experts.down_proj", "blk.{}.ffn_down_exps.weight", transposed_matrices},
    {"layers.{}.mlp.experts.down_proj_bias", "blk.{}.ffn_down_exps.bias"},
};

result<void> finish_gpt_oss(model_builder& model) {
  FLYWHEEL_CHECK(add_rope(model));
  const config& c = model.config();
  c.expect_full_attention_interval(2);
  model.set_count("attention.sliding_window", c.required("sliding_window"));
  model.set_count("expert_feed_forward_length", c.required("intermediate_size"));
  return {};
}

}  // namespace

constinit const family gpt_oss_family = {.architecture = "gpt-oss",
                                         .keys = decoder_keys,
                                         .tensors = {gpt_oss_tensors, decoder_tensors},
                                         .finish = finish_gpt_oss};

}  // namespace flywheel::inline v0::hugging_face
