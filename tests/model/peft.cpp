// PEFT folders as archives of adapters.
#include <algorithm>
#include <cmath>
#include <map>

#include "flywheel/model/adapter_archive.hpp"
#include "flywheel/model/open.hpp"
#include "src/model/hugging_face/names.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/hugging_face.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

std::vector<std::byte> stored_bytes(const io::archive& file, const io::tensor_info& t) {
  std::vector<std::byte> bytes(t.bytes);
  file.read(t, 0, bytes).value();
  return bytes;
}

std::vector<float> floats(const io::archive& file, const std::string& name) {
  const io::tensor_info* t = file.find(name);
  INFO(name);
  REQUIRE(t != nullptr);
  std::vector<float> values(static_cast<std::size_t>(t->dims.elements()));
  const std::vector<std::byte> bytes = stored_bytes(file, *t);
  formats::decode(tensor_view(t->type, t->dims, bytes.data()), values).value();
  return values;
}

/// The same tensors, bit for bit.
void check_equal(const io::archive& one, const io::archive& other) {
  CHECK(one.tensors().size() == other.tensors().size());
  for (const io::tensor_info& t : one.tensors()) {
    INFO(t.name);
    const io::tensor_info* same = other.find(t.name);
    REQUIRE(same != nullptr);
    CHECK(same->type == t.type);
    REQUIRE(same->dims == t.dims);
    CHECK(stored_bytes(one, t) == stored_bytes(other, *same));
  }
  CHECK(one.metadata().number("adapter.lora.alpha").value() == other.metadata().number("adapter.lora.alpha").value());
}

float_tensor numbered(const std::string& name, const shape& dims) {
  return {name, dims, exact_values(dims, name.size() * 31 + static_cast<std::size_t>(name.back()))};
}

/// A PEFT folder beside a tiny llama (heads of 8).
struct peft_folder {
  explicit peft_folder(const tiny_model& m = {.hidden = 16, .layers = 2, .heads = 2, .kv_heads = 1, .ffn = 32}) {
    write_tiny_model(folder / "base.gguf", m);
    base = open_model_archive(folder / "base.gguf").value();
    config = {{"peft_type", "LORA"}, {"r", 4}, {"lora_alpha", 8}, {"bias", "none"}};
  }
  /// A pair of factors of a module; "default." may stand in between.
  void add(const std::string& module, std::int64_t rank, std::int64_t n, std::int64_t k,
           const std::string& between = "") {
    tensors.push_back(numbered("base_model.model." + module + ".lora_A." + between + "weight", {rank, k}));
    tensors.push_back(numbered("base_model.model." + module + ".lora_B." + between + "weight", {n, rank}));
  }
  result<io::archive> open() {
    write_file(folder / "peft/adapter_config.json", config.dump());
    write_weights(folder / "peft/adapter_model.safetensors", tensors);
    return open_adapter_archive(folder / "peft", base);
  }
  error refused() {
    auto opened = open();
    REQUIRE_FALSE(opened.has_value());
    return opened.error();
  }

  temp_folder folder;
  io::archive base;
  json config;
  std::vector<float_tensor> tensors;
};

bool says(const error& e, std::string_view text) { return e.to_string().find(text) != std::string::npos; }

const std::string layer0 = "model.layers.0.";

}  // namespace

TEST_CASE("PEFT folders of the shared sets are their GGUF files", "[model]") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/adapters");
  const io::archive base = open_model_archive(folder / "base.gguf").value();
  const io::archive translated = open_model_archive(folder / "base_hf").value();
  for (const char* name : {"adapter1", "adapter2"}) {
    const io::archive file = open_adapter_archive(folder / (std::string(name) + ".gguf"), base).value();
    for (const io::archive* b : {&base, &translated}) {
      const io::archive peft = open_adapter_archive(folder / (std::string(name) + "_peft"), *b).value();
      check_equal(file, peft);
      CHECK(adapter_changes(peft, *b).value().size() == file.tensors().size() / 2);
    }
  }
}

TEST_CASE("the family's adapters are the same in both layouts", "[model]") {
  FLYWHEEL_REQUIRE_SHARED(folder, "family");
  const io::archive base = open_model_archive(folder / "models/tiny-base/gguf/tiny-base-f16.gguf").value();
  for (const std::string name : {"legal", "tutoring", "telemetry"}) {
    const auto place = folder / "adapters" / name;
    check_equal(open_adapter_archive(place / (name + "-lora-f16.gguf"), base).value(),
                open_adapter_archive(place, base).value());
  }
}

TEST_CASE("factors keep what configuration and tensors say", "[model]") {
  peft_folder f;
  f.add(layer0 + "self_attn.q_proj", 4, 16, 16, "default.");
  f.add(layer0 + "mlp.up_proj", 4, 32, 16);
  f.add("lm_head", 4, 320, 16);
  f.tensors.push_back(numbered("base_model.model." + layer0 + "self_attn.q_proj.lora_magnitude_vector", {16}));
  f.tensors.push_back(numbered("base_model.model.model.embed_tokens.lora_embedding_A", {4, 320}));
  f.tensors.push_back(numbered("base_model.model.model.embed_tokens.lora_embedding_B", {16, 4}));
  f.tensors.push_back(numbered("base_model.model.model.embed_tokens.base_layer.weight", {320, 16}));
  f.tensors.push_back(numbered("base_model.model.model.norm.modules_to_save.default.weight", {16}));
  f.tensors.push_back(numbered("base_model.model." + layer0 + "self_attn.k_proj.weight", {8, 16}));
  f.config["modules_to_save"] = {"norm", "k_proj"};
  f.config["use_dora"] = true;
  const io::archive made = f.open().value();
  CHECK(made.tensors().size() == 11);
  const auto stored = [&](const std::string& name) {
    const std::string full = "base_model.model." + name;
    for (const float_tensor& t : f.tensors)
      if (t.name == full) return t;
    throw std::invalid_argument(full);
  };
  const auto pair = [](std::int64_t r) { return r - r % 8 + r % 2 * 4 + r % 8 / 2; };  // GGUF's row r, heads of 8
  const auto same = [](std::int64_t i) { return i; };
  const float_tensor b = stored(layer0 + "self_attn.q_proj.lora_B.default.weight");
  CHECK(floats(made, "blk.0.attn_q.weight.lora_b") == picked(b, 4, pair, same).values);
  CHECK(floats(made, "blk.0.attn_q.weight.lora_a") == stored(layer0 + "self_attn.q_proj.lora_A.default.weight").values);
  const float_tensor m = stored(layer0 + "self_attn.q_proj.lora_magnitude_vector");
  CHECK(floats(made, "blk.0.attn_q.weight.lora_magnitude") == picked(m, 1, pair, same).values);
  CHECK(floats(made, "blk.0.ffn_up.weight.lora_b") == stored(layer0 + "mlp.up_proj.lora_B.weight").values);
  CHECK(floats(made, "output.weight.lora_b") == stored("lm_head.lora_B.weight").values);
  CHECK(floats(made, "output_norm.weight") == stored("model.norm.modules_to_save.default.weight").values);
  const float_tensor k = stored(layer0 + "self_attn.k_proj.weight");
  CHECK(floats(made, "blk.0.attn_k.weight") == picked(k, 16, pair, same).values);

  const float_tensor flat = stored("model.embed_tokens.lora_embedding_A");
  const std::vector<float> rows = floats(made, "token_embd.weight.lora_a");
  CHECK(made.find("token_embd.weight.lora_a")->dims == shape{320, 4});
  bool flipped = true;
  for (std::size_t token = 0; token < 320; ++token)
    for (std::size_t r = 0; r < 4; ++r) flipped = flipped && rows[token * 4 + r] == flat.values[r * 320 + token];
  CHECK(flipped);
  float part[3] = {};  // a read that begins and ends within rows
  made.read(*made.find("token_embd.weight.lora_a"), 6 * 4, std::as_writable_bytes(std::span(part))).value();
  CHECK(std::equal(part, part + 3, rows.begin() + 6));

  const auto changes = adapter_changes(made, f.base).value();
  REQUIRE(changes.size() == 6);
  for (const adapter_change& c : changes)
    if (c.rank > 0) CHECK(c.factor == 2);
}

TEST_CASE("rank stabilization and patterns become factors", "[model]") {
  peft_folder f;
  f.add(layer0 + "self_attn.v_proj", 4, 8, 16);
  f.add(layer0 + "mlp.up_proj", 4, 32, 16);
  f.add("model.layers.1.mlp.up_proj", 2, 32, 16);
  f.add("model.layers.1.mlp.down_proj", 4, 16, 32);
  /// alpha / rank times what B became, over what it was.
  const auto factors = [&] {
    const io::archive made = f.open().value();
    std::map<std::string, double> found;
    const auto changes = adapter_changes(made, f.base).value();
    for (const adapter_change& c : changes) {
      std::string module = c.weight;
      const std::map<std::string, std::string> names = {{"blk.0.attn_v.weight", layer0 + "self_attn.v_proj"},
                                                        {"blk.0.ffn_up.weight", layer0 + "mlp.up_proj"},
                                                        {"blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj"},
                                                        {"blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj"}};
      const std::string stored = "base_model.model." + names.at(c.weight) + ".lora_B.weight";
      const auto t = std::find_if(f.tensors.begin(), f.tensors.end(), [&](const auto& x) { return x.name == stored; });
      const std::vector<float> b = floats(made, c.b);
      std::size_t i = 0;
      while (t->values[i] == 0) ++i;
      found[c.weight] = c.factor * b[i] / t->values[i];
    }
    return found;
  };
  const auto expect = [&](double v0, double up0, double up1, double down1) {
    const std::map<std::string, double> found = factors();
    CHECK(found.at("blk.0.attn_v.weight") == Approx(v0));
    CHECK(found.at("blk.0.ffn_up.weight") == Approx(up0));
    CHECK(found.at("blk.1.ffn_up.weight") == Approx(up1));
    CHECK(found.at("blk.1.ffn_down.weight") == Approx(down1));
  };
  f.config["rank_pattern"] = {{"layers.1.mlp.up_proj", 2}};
  expect(2, 2, 4, 2);
  f.config["use_rslora"] = true;
  expect(4, 4, 8 / std::sqrt(2), 4);
  f.config["use_rslora"] = false;
  f.config["alpha_pattern"] = {{"down_proj", 1.5}, {"v_proj", 0}};
  expect(0, 2, 4, 0.375);
  f.config["alpha_pattern"] = {{"layers\\.1\\..*", 6}, {"^model.layers.0.mlp.up_proj", 3}, {"p_proj", 100}};
  expect(2, 0.75, 3, 1.5);
  f.config["lora_alpha"] = 0;
  expect(0, 0.75, 3, 1.5);

  // The first pattern of the file counts, whatever its place in the alphabet.
  f.config["lora_alpha"] = 8;
  for (const auto& [text, alpha] : {std::pair{R"({"up_proj": 4, "layers.0.mlp.up_proj": 12})", 4.0},
                                    std::pair{R"({"layers.0.mlp.up_proj": 12, "up_proj": 4})", 12.0}}) {
    f.open().value();
    f.config.erase("alpha_pattern");
    std::string all = f.config.dump();
    all.insert(1, "\"alpha_pattern\":" + std::string(text) + ",");
    write_file(f.folder / "peft/adapter_config.json", all);
    const io::archive made = open_adapter_archive(f.folder / "peft", f.base).value();
    const std::vector<float> b = floats(made, "blk.0.ffn_up.weight.lora_b");
    const float_tensor& was = f.tensors[3];
    REQUIRE(was.name.find("up_proj.lora_B") != std::string::npos);
    std::size_t i = 0;
    while (was.values[i] == 0) ++i;
    CHECK(b[i] / was.values[i] * 2 == Approx(alpha / 4));
  }
}

TEST_CASE("single experts are joined", "[model]") {
  tiny_model m{.hidden = 16, .heads = 2, .kv_heads = 1, .ffn = 32};
  m.experts = 3;
  peft_folder f(m);
  for (const char* expert : {"2", "0", "1"}) f.add(layer0 + "block_sparse_moe.experts." + expert + ".w3", 4, 32, 16);
  f.add(layer0 + "block_sparse_moe.gate", 4, 3, 16);
  const io::archive made = f.open().value();
  CHECK(made.find("blk.0.ffn_up_exps.weight.lora_a")->dims == shape{3, 4, 16});
  const std::vector<float> b = floats(made, "blk.0.ffn_up_exps.weight.lora_b");
  CHECK(std::equal(b.begin(), b.begin() + 128, f.tensors[3].values.begin()));
  CHECK(std::equal(b.begin() + 256, b.end(), f.tensors[1].values.begin()));
  CHECK(adapter_changes(made, f.base).value().size() == 2);
  f.tensors.erase(f.tensors.begin() + 4, f.tensors.begin() + 6);
  CHECK(says(f.refused(), "expert 1 before it is missing"));
}

TEST_CASE("PEFT folders that cannot be used say why", "[model]") {
  peft_folder f;
  f.add(layer0 + "mlp.up_proj", 4, 32, 16);
  REQUIRE(f.open().has_value());
  const json good = f.config;
  struct refusal {
    json change;
    errc code;
  };
  const refusal refusals[] = {{{{"peft_type", "IA3"}}, errc::unsupported},
                              {{{"peft_type", nullptr}}, errc::malformed},
                              {{{"bias", "all"}}, errc::unsupported},
                              {{{"lora_bias", true}}, errc::unsupported},
                              {{{"fan_in_fan_out", true}}, errc::unsupported},
                              {{{"layer_replication", {{0, 1}}}}, errc::unsupported},
                              {{{"init_lora_weights", "pissa_niter_4"}}, errc::unsupported},
                              {{{"target_parameters", {"mlp.experts.gate_up_proj"}}}, errc::unsupported},
                              {{{"trainable_token_indices", {1}}}, errc::unsupported},
                              {{{"r", 0}}, errc::malformed},
                              {{{"r", 3}}, errc::malformed},
                              {{{"r", "4"}}, errc::malformed},
                              {{{"lora_alpha", "8"}}, errc::malformed},
                              {{{"lora_alpha", 1e300}}, errc::malformed},
                              {{{"use_rslora", 1}}, errc::malformed},
                              {{{"modules_to_save", {1}}}, errc::malformed},
                              {{{"rank_pattern", {{"up_proj", 5}}}}, errc::malformed},
                              {{{"rank_pattern", {{"up_(proj", 4}}}}, errc::malformed},
                              {{{"alpha_pattern", {{"up_proj", "4"}}}}, errc::malformed},
                              {{{"alpha_pattern", {1, 2}}}, errc::malformed}};
  for (const refusal& r : refusals) {
    f.config = good;
    f.config.update(r.change);
    const error e = f.refused();
    INFO(e.to_string());
    CHECK(e.code == r.code);
    CHECK(says(e, "adapter_config.json"));
    if (r.code == errc::unsupported) CHECK(says(e, "'" + r.change.begin().key() + "'"));
  }
  f.config = good;

  const auto with = [&](const std::string& name, const shape& dims, errc code, std::string_view text) {
    f.tensors.push_back(numbered("base_model.model." + name, dims));
    const error e = f.refused();
    INFO(e.to_string());
    CHECK(e.code == code);
    CHECK(says(e, text));
    CHECK(says(e, "peft: tensor"));
    f.tensors.pop_back();
  };
  with(layer0 + "mlp.gate_proj.lora_A.weight", {4, 16}, errc::malformed, "factor B");
  with(layer0 + "mlp.gate_proj.lora_B.weight", {32, 4}, errc::malformed, "factor A");
  with(layer0 + "mlp.gate_proj.lora_magnitude_vector", {32}, errc::malformed, "factor A");
  with(layer0 + "mlp.up_proj.lora_magnitude_vector", {31}, errc::malformed, "31 values");
  with(layer0 + "mlp.up_proj.lora_B.bias", {32}, errc::unsupported, "lora_bias");
  with(layer0 + "mlp.up_proj.lora_A.second.weight", {4, 16}, errc::unsupported, "several adapters");
  with(layer0 + "mlp.up_proj.lora_C.weight", {4, 16}, errc::unsupported, "not known");
  with(layer0 + "mlp.up_proj.weight", {32, 16}, errc::unsupported, "modules_to_save");
  f.add(layer0 + "mlp.side_proj", 4, 32, 16);
  CHECK(says(f.refused(), "no such module"));
  f.tensors.resize(2);
  f.tensors[1].dims = {64, 2};
  CHECK(says(f.refused(), "does not fit the rank"));
  f.tensors.clear();
  f.add(layer0 + "self_attn.q_proj", 4, 12, 16);
  CHECK(says(f.refused(), "does not fit heads"));
  f.tensors.clear();
  const io::archive empty = f.open().value();
  CHECK(adapter_changes(empty, f.base).error().code == errc::malformed);

  std::filesystem::remove(f.folder / "peft/adapter_config.json");
  CHECK(open_adapter_archive(f.folder / "peft", f.base).error().code == errc::not_found);
  write_file(f.folder / "peft/adapter_config.json", "{\"r\": 4,");
  CHECK(open_adapter_archive(f.folder / "peft", f.base).error().code == errc::malformed);
  std::filesystem::remove(f.folder / "peft/adapter_model.safetensors");
  write_file(f.folder / "peft/adapter_model.bin", "PK");
  CHECK(says(open_adapter_archive(f.folder / "peft", f.base).error(), "pickle"));
}

TEST_CASE("tensors of GGUF have names in Hugging Face folders", "[model]") {
  using hugging_face::hugging_face_name;
  CHECK(hugging_face_name("llama", "blk.12.attn_q.weight") == "model.layers.12.self_attn.q_proj.weight");
  CHECK(hugging_face_name("llama", "token_embd.weight") == "model.embed_tokens.weight");
  CHECK(hugging_face_name("llama", "output.weight") == "lm_head.weight");
  CHECK(hugging_face_name("llama", "output_norm.weight") == "model.norm.weight");
  CHECK(hugging_face_name("llama", "blk.0.ffn_up_exps.weight") ==
        "model.layers.0.block_sparse_moe.experts.{}.w3.weight");
  CHECK(hugging_face_name("gemma3", "blk.1.ffn_norm.weight") == "model.layers.1.pre_feedforward_layernorm.weight");
  CHECK(hugging_face_name("gemma3", "output.weight") == "lm_head.weight");
  CHECK(hugging_face_name("qwen35", "blk.1.ssm_dt.bias") == "model.layers.1.linear_attn.dt_bias");
  CHECK(hugging_face_name("qwen2", "blk.1.attn_q.bias") == "model.layers.1.self_attn.q_proj.bias");
  CHECK(hugging_face_name("phi3", "blk.1.attn_qkv.weight") == "model.layers.1.self_attn.qkv_proj.weight");
  CHECK(hugging_face_name("bert", "blk.1.attn_q.weight") == "encoder.layer.1.attention.self.query.weight");
  CHECK(hugging_face_name("llama", "rope_freqs.weight").empty());
  CHECK(hugging_face_name("no such", "output.weight").empty());
}
