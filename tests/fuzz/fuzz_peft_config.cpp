// Any bytes as the adapter_config.json of a small PEFT folder; the tensors of whatever comes out are read and checked
// against their base.
#include <map>
#include <string>

#include "flywheel/detail/try.hpp"
#include "flywheel/model/adapter_archive.hpp"
#include "fuzz/tiny_safetensors.hpp"
#include "src/model/hugging_face/peft.hpp"

namespace {

using namespace flywheel;

io::archive weights_of(const std::string& file) { return io::archive::open(std::as_bytes(std::span(file))).value(); }

/// A llama's numbers and the tensors that are changed.
io::archive tiny_base(const std::string& file) {
  const io::archive weights = weights_of(file);
  io::archive_content content;
  content.metadata.set("general.architecture", std::string("llama"));
  content.metadata.set("llama.embedding_length", std::uint32_t{4});
  content.metadata.set("llama.attention.head_count", std::uint32_t{2});
  content.sources.assign(weights.sources().begin(), weights.sources().end());
  content.tensors.assign(weights.tensors().begin(), weights.tensors().end());
  return io::archive::assemble(std::move(content)).value();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string base_file = test::tiny_safetensors({{"token_embd.weight", "F16", {8, 4}},
                                                               {"blk.0.attn_q.weight", "F16", {4, 4}},
                                                               {"blk.0.ffn_up.weight", "F32", {8, 4}},
                                                               {"output_norm.weight", "F32", {4}}});
  static const std::string file =
      test::tiny_safetensors({{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "F16", {2, 4}},
                              {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", "F16", {4, 2}},
                              {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", "F32", {1, 4}},
                              {"base_model.model.model.layers.0.mlp.up_proj.lora_B.weight", "BF16", {8, 1}},
                              {"base_model.model.model.embed_tokens.lora_embedding_A", "F16", {2, 8}},
                              {"base_model.model.model.embed_tokens.lora_embedding_B", "F16", {4, 2}},
                              {"base_model.model.model.norm.weight", "F16", {4}}});
  static const io::archive base = tiny_base(base_file);
  const hugging_face::folder folder(
      "f", {{std::string(hugging_face::adapter_config_file), std::string(reinterpret_cast<const char*>(data), size)}},
      weights_of(file));
  const auto made = detail::guarded([&] { return hugging_face::translate_adapter(folder, base); });
  test::check_translated(made);
  if (made) static_cast<void>(adapter_changes(*made, base));
  return 0;
}
