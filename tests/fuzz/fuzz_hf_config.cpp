// Any bytes as the config.json of a small folder of safetensors; the tensors of whatever comes out are read.
#include <map>
#include <string>

#include "flywheel/detail/try.hpp"
#include "fuzz/tiny_safetensors.hpp"
#include "src/model/hugging_face/translate.hpp"

namespace {

using namespace flywheel;

/// Tensors under names of many families, all [8, 4] or [4] or what a name wants.
std::string weights() {
  return test::tiny_safetensors({{"model.embed_tokens.weight", "F16", {8, 4}},
                                 {"model.norm.weight", "BF16", {4}},
                                 {"lm_head.weight", "F16", {8, 4}},
                                 {"model.layers.0.input_layernorm.weight", "F32", {4}},
                                 {"model.layers.0.self_attn.q_proj.weight", "F16", {8, 4}},
                                 {"model.layers.0.self_attn.q_proj.bias", "F16", {8}},
                                 {"model.layers.0.self_attn.k_proj.weight", "F32", {4, 4}},
                                 {"model.layers.0.self_attn.sinks", "BF16", {2}},
                                 {"model.layers.0.mlp.gate.weight", "F16", {2, 4}},
                                 {"model.layers.0.mlp.experts.gate_up_proj", "BF16", {2, 4, 8}},
                                 {"model.layers.0.mlp.experts.down_proj_blocks", "U8", {2, 4, 1, 16}},
                                 {"model.layers.0.mlp.experts.down_proj_scales", "U8", {2, 4, 1}},
                                 {"model.layers.0.linear_attn.in_proj_qkv.weight", "F16", {16, 4}},
                                 {"model.layers.0.linear_attn.out_proj.weight", "F16", {4, 8}},
                                 {"model.layers.0.linear_attn.A_log", "F32", {4}},
                                 {"model.layers.0.linear_attn.conv1d.weight", "F32", {16, 1, 4}}});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string file = weights();
  // The first byte says which tensors are there, so that families without the others come through.
  if (size == 0) return 0;
  const io::archive all = io::archive::open(std::as_bytes(std::span(file))).value();
  io::archive_content some;
  some.sources.assign(all.sources().begin(), all.sources().end());
  some.file_bytes = all.file_bytes();
  for (const io::tensor_info& t : all.tensors()) {
    const bool mlp = t.name.find("mlp.") != t.name.npos, linear = t.name.find("linear_attn") != t.name.npos;
    const bool blocks = t.name.find("_proj_") != t.name.npos || t.name.find("sinks") != t.name.npos;
    if ((mlp && !(data[0] & 1)) || (linear && !(data[0] & 2)) || (blocks && !(data[0] & 4))) continue;
    some.tensors.push_back(t);
  }
  const hugging_face::folder folder("f",
                                    {{"config.json", std::string(reinterpret_cast<const char*>(data) + 1, size - 1)}},
                                    io::archive::assemble(std::move(some)).value());
  const auto model = flywheel::detail::guarded([&] { return hugging_face::translate(folder); });
  test::check_translated(model);
  return 0;
}
