// What qwen35's page reads for itself is checked before anything is built by it.
#include "flywheel/io/archive.hpp"
#include "src/model/architecture.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

/// Builds the graph of a file that has an embedding table and these keys; gives the error.
error refusal(const std::function<void(io::metadata&)>& edit) {
  const temp_folder folder;
  tiny_model m;
  m.architecture = "qwen35";
  m.vocabulary = false;
  write_tiny_model(folder / "m.gguf", m, [&](io::metadata& meta, std::vector<tiny_tensor>&) {
    const std::pair<const char*, std::uint32_t> numbers[] = {
        {"conv_kernel", 4}, {"inner_size", 64}, {"state_size", 16}, {"time_step_rank", 4}, {"group_count", 2}};
    for (const auto& [key, number] : numbers) meta.set(std::string("qwen35.ssm.") + key, number);
    edit(meta);
  });
  const io::archive file = io::archive::open(folder / "m.gguf").value();
  const auto h = detail::read_hyperparameters(file).value();
  auto built = detail::find_architecture("qwen35").value()->build(file, h, detail::graph_output::logits);
  REQUIRE(!built);
  return std::move(built).error();
}

}  // namespace

TEST_CASE("qwen35 asks for its own numbers, then for its tensors") {
  CHECK(refusal([](io::metadata&) {}).where == "blk.0.attn_qkv.weight");  // the first that llama does not have
  for (const char* key : {"conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count"}) {
    const std::string name = std::string("qwen35.ssm.") + key;
    CHECK(refusal([&](io::metadata& meta) { meta.erase(name); }).where == name);
    CHECK(refusal([&](io::metadata& meta) { meta.set(name, std::uint32_t{0}); }).where == name);
  }
  const error odd = refusal([](io::metadata& meta) { meta.set("qwen35.ssm.inner_size", std::uint32_t{66}); });
  CHECK(odd.code == errc::malformed);
  CHECK(odd.where == "qwen35.ssm.inner_size");
  CHECK(refusal([](io::metadata& meta) { meta.set("qwen35.full_attention_interval", std::uint32_t{0}); }).where ==
        "qwen35.full_attention_interval");
  // All layers but the last cannot be left out.
  CHECK(refusal([](io::metadata& meta) { meta.set("qwen35.nextn_predict_layers", std::uint32_t{1}); }).where ==
        "qwen35.nextn_predict_layers");
}
