// The reference passes themselves: against the conformance set's float64 results, where it has a case of their
// formulas, and the random models: everything in them must show in the results, else a wrong formula could pass unseen.
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "model/reference/random_models.hpp"
#include "model/reference/references.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/temp_folder.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

namespace tolerance {
/// Between two float64 evaluations, of which one was rounded to f32 when it was stored. Seen: 4.2e-7.
constexpr double evaluations = 5e-6;
/// What a changed weight, key or formula does at least: far more than the 1e-3 that the library may differ by.
constexpr double feature = 0.02;
/// Router logits closer than this could be ordered otherwise in f32.
constexpr double router_gap = 1e-4;
}  // namespace tolerance

std::vector<double> stored(const io::archive& file, const std::string& name) {
  const io::tensor_info* info = file.find(name);
  REQUIRE(info != nullptr);
  std::vector<std::byte> bytes(static_cast<std::size_t>(info->bytes));
  file.read(*info, 0, bytes).value();
  std::vector<float> values(static_cast<std::size_t>(info->dims.elements()));
  formats::find_decoder(info->type)(bytes.data(), info->dims.elements(), values.data());
  return {values.begin(), values.end()};
}

/// Logits, or the pooled vector of an embedding model, as one row of numbers.
std::vector<double> result_of(const reference::model_file& m, const std::vector<std::int32_t>& ids) {
  return m.has_key("pooling_type") ? reference::embed(m, ids) : reference::flat(reference::predict(m, ids).logits);
}

/// Tensors of the same kind in all layers are one class.
std::string class_of(const std::string& tensor) {
  return tensor.starts_with("blk.") ? tensor.substr(tensor.find('.', 4) + 1) : tensor;
}

/// Other values in one class of tensors.
void reverse_class(reference::random_model& m, const std::string& tensor_class) {
  for (tiny_tensor& t : m.tensors) {
    if (class_of(t.plan.name) != tensor_class) continue;
    if (t.values.size() == 1)
      t.values[0] *= 1.5F;
    else
      std::reverse(t.values.begin(), t.values.end());
  }
}

struct key_change {
  const char* model;
  const char* key;
  io::value value;
};

const std::vector<key_change>& key_changes() {
  static const std::vector<key_change> changes = {
      {"smollm3", "rope.freq_base", 10000.0F},
      {"smollm3", "attention.layer_norm_rms_epsilon", 0.1F},
      {"granite", "embedding_scale", 4.0F},
      {"granite", "residual_scale", 0.5F},
      {"granite", "attention.scale", 0.25F},
      {"granite", "logit_scale", 6.0F},
      {"mistral3", "rope.freq_base", 10000.0F},
      {"mistral3", "rope.scaling.type", std::string("linear")},
      {"mistral3", "rope.scaling.factor", 8.0F},
      {"mistral3", "rope.scaling.original_context_length", std::uint32_t{128}},
      {"mistral3", "rope.scaling.yarn_beta_fast", 32.0F},
      {"mistral3", "rope.scaling.yarn_beta_slow", 1.0F},
      {"mistral3", "rope.scaling.yarn_log_multiplier", 0.0F},
      {"mistral3", "attention.temperature_scale", 0.2F},
      {"mistral3_moe", "expert_used_count", std::uint32_t{3}},
      {"qwen3_embedding", "rope.freq_base", 1000.0F},
      {"qwen3_embedding", "pooling_type", std::uint32_t{1}},
      {"gemma4_small_device", "attention.sliding_window", std::uint32_t{11}},
      {"gemma4_small_device", "attention.shared_kv_layers", std::uint32_t{2}},
      {"gemma4_small_device", "rope.freq_base", 10000.0F},
      {"gemma4_small_device", "rope.freq_base_swa", 1000.0F},
      {"gemma4_small_device", "rope.dimension_count_swa", std::uint32_t{16}},
      {"gemma4_small_device", "final_logit_softcapping", 4.0F},
      {"gemma4_small_device", "attention.layer_norm_rms_epsilon", 0.1F},
      {"gemma4_moe", "attention.sliding_window", std::uint32_t{13}},
      {"gemma4_moe", "expert_used_count", std::uint32_t{3}},
      {"qwen35moe", "rope.freq_base", 100.0F},
      {"qwen35moe", "rope.dimension_count", std::uint32_t{32}},
      {"qwen35moe", "attention.layer_norm_rms_epsilon", 0.01F},
      {"qwen35moe", "expert_used_count", std::uint32_t{3}},
      {"nomic-bert", "rope.freq_base", 10000.0F},
      {"nomic-bert", "attention.layer_norm_epsilon", 0.1F},
      {"nomic-bert", "pooling_type", std::uint32_t{2}},
  };
  return changes;
}

}  // namespace

TEST_CASE("reference passes reproduce the conformance set's float64 results", "[reference]") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/architectures");
  const auto index = nlohmann::json::parse(std::ifstream(folder / "index.json"));
  const std::string name = GENERATE("llama", "llama_yarn", "llama_linear_rope", "llama3_rope_freqs", "llama_moe",
                                    "qwen2", "qwen3", "qwen3_yarn", "qwen3moe", "gemma3", "qwen35", "bert");
  const auto& models = index["models"];
  const auto found = std::find_if(models.begin(), models.end(), [&](const auto& m) { return m["name"] == name; });
  REQUIRE(found != models.end());
  const reference::model_file m(folder / (name + ".gguf"));
  const io::archive expected = io::archive::open(folder / (name + ".expected.safetensors")).value();
  for (const std::string sequence : {"a", "b"}) {
    INFO(name << ", sequence " << sequence);
    const auto ids = (*found)["sequences"][sequence].get<std::vector<std::int32_t>>();
    std::vector<double> got, want;
    if (m.has_key("pooling_type")) {
      got = reference::embed(m, ids);
      want = stored(expected, sequence + ".embedding_f64");
    } else {
      const reference::rows logits = reference::predict(m, ids).logits;
      for (std::size_t t = 0; t < ids.size(); ++t)
        if (t % 8 == 0 || t + 1 == ids.size()) got.insert(got.end(), logits[t].begin(), logits[t].end());
      want = stored(expected, sequence + ".logits_f64");
    }
    CHECK(reference::difference(got, want) < tolerance::evaluations);
  }
}

TEST_CASE("every tensor of the random models shows in the reference's results", "[reference]") {
  for (const reference::random_model& original : reference::random_models()) {
    const auto ids = reference::random_ids(40, 320);
    const auto want = result_of({original.meta, original.tensors}, ids);
    std::set<std::string> classes;
    for (const tiny_tensor& t : original.tensors)
      if (t.plan.name.find("nextn.") == std::string::npos) classes.insert(class_of(t.plan.name));
    for (const std::string& tensor_class : classes) {
      reference::random_model m = original;
      reverse_class(m, tensor_class);
      INFO(original.name << ": " << tensor_class);
      CHECK(reference::difference(result_of({m.meta, m.tensors}, ids), want) > tolerance::feature);
    }
  }
}

TEST_CASE("every key of the random models shows in the reference's results", "[reference]") {
  const auto ids = reference::random_ids(80, 320);
  for (const reference::random_model& original : reference::random_models()) {
    const auto want = result_of({original.meta, original.tensors}, ids);
    for (const key_change& change : key_changes()) {
      if (original.name != change.model) continue;
      reference::random_model m = original;
      const std::string key = m.architecture() + "." + change.key;
      INFO(original.name << ": " << key);
      REQUIRE(m.meta.contains(key));
      m.meta.set(key, change.value);
      CHECK(reference::difference(result_of({m.meta, m.tensors}, ids), want) > tolerance::feature);
    }
  }
}

TEST_CASE("what files do not say shows in the reference's results, too", "[reference]") {
  const auto ids = reference::random_ids(40, 320);
  const auto logits = [&](const reference::prediction& p) { return reference::flat(p.logits); };
  const auto file_of = [](const reference::random_model& m) { return reference::model_file(m.meta, m.tensors); };
  {
    const auto m = file_of(reference::random_smollm3());
    const auto want = logits(reference::predict(m, ids));
    reference::llama_settings other = reference::smollm3_settings();
    other.unrotated_every = 0;
    CHECK(reference::difference(logits(reference::llama(m, ids, other)), want) > tolerance::feature);
    other = reference::smollm3_settings();
    other.pairs = reference::pairs::halves;
    CHECK(reference::difference(logits(reference::llama(m, ids, other)), want) > tolerance::feature);
  }
  for (const bool small_device : {true, false}) {
    const auto m = file_of(reference::random_gemma4(small_device));
    const auto want = logits(reference::predict(m, ids));
    const auto changed = [&](const std::function<void(reference::gemma_settings&)>& change) {
      reference::gemma_settings other = reference::gemma4_settings(m);
      change(other);
      return reference::difference(logits(reference::gemma(m, ids, other)), want);
    };
    CHECK(changed([](auto& s) { s.normalize_values = false; }) > tolerance::feature);
    CHECK(changed([](auto& s) {
            for (auto& layer : s.layers) layer.attention.scale = 0;
          }) > tolerance::feature);
    CHECK(changed([](auto& s) {
            for (auto& layer : s.layers) layer.rope.divisors.clear();
          }) > tolerance::feature);
    CHECK(changed([](auto& s) {
            for (auto& layer : s.layers) layer.rope.pairs = reference::pairs::adjacent;
          }) > tolerance::feature);
    if (small_device) {
      CHECK(changed([](auto& s) { s.layers[5].kv_layer = 0; }) > tolerance::feature);
      CHECK(changed([](auto& s) { s.layers[6].kv_layer = 1; }) > tolerance::feature);
    }
  }
}

TEST_CASE("the random models' routers choose clearly", "[reference]") {
  for (const reference::random_model& m : reference::random_models()) {
    INFO(m.name);
    CHECK(reference::predict({m.meta, m.tensors}, reference::random_ids(150, 320)).router_gap > tolerance::router_gap);
  }
}

TEST_CASE("a block that predicts further tokens changes no logits", "[reference]") {
  const auto ids = reference::random_ids(20, 320);
  const reference::random_model plain = reference::random_qwen35moe(false), with = reference::random_qwen35moe(true);
  CHECK(result_of({with.meta, with.tensors}, ids) == result_of({plain.meta, plain.tensors}, ids));
}

TEST_CASE("the random models' files hold what was made up", "[reference]") {
  const temp_folder folder;
  const auto ids = reference::random_ids(10, 320);
  for (const reference::random_model& m : reference::random_models()) {
    INFO(m.name);
    m.write(folder / (m.name + ".gguf"));
    CHECK(result_of(reference::model_file(folder / (m.name + ".gguf")), ids) == result_of({m.meta, m.tensors}, ids));
  }
}
