// Hugging Face folders of every family: names, shapes, types and values of the translation, and what damaged folders
// say.
#include "support/hugging_face.hpp"
#include "flywheel/model/convert.hpp"
#include "flywheel/model/model.hpp"
#include "flywheel/model/open.hpp"
#include "support/data.hpp"

namespace {

using namespace flywheel;
using namespace flywheel::test;

struct wanted_tensor {
  std::string name;
  shape dims;
};

std::vector<float_tensor> with_values(const std::vector<wanted_tensor>& wanted) {
  std::vector<float_tensor> out;
  for (const wanted_tensor& w : wanted) {
    out.push_back({w.name, w.dims, exact_values(w.dims, out.size() + 1)});
    if (w.name.ends_with("ssm_a"))  // made by exp
      for (float& x : out.back().values) x = -std::exp(x);
  }
  return out;
}

json decoder_config(const std::string& architecture) {
  return {
      {"architectures", {architecture}}, {"hidden_size", 32},    {"num_hidden_layers", 2},  {"num_attention_heads", 2},
      {"num_key_value_heads", 1},        {"head_dim", 16},       {"intermediate_size", 48}, {"vocab_size", 40},
      {"max_position_embeddings", 512},  {"rms_norm_eps", 1e-5}, {"rope_theta", 10000.0}};
}

/// The tensors of two layers of a decoder, and of the ends. `q`: rows of the query.
std::vector<wanted_tensor> decoder(const std::vector<wanted_tensor>& layer, bool head = true) {
  std::vector<wanted_tensor> all = {{"token_embd.weight", {40, 32}}};
  for (int i = 0; i < 2; ++i)
    for (const wanted_tensor& t : layer) all.push_back({"blk." + std::to_string(i) + "." + t.name, t.dims});
  all.push_back({"output_norm.weight", {32}});
  if (head) all.push_back({"output.weight", {40, 32}});
  return all;
}

const std::vector<wanted_tensor> attention = {{"attn_norm.weight", {32}},
                                              {"attn_q.weight", {32, 32}},
                                              {"attn_k.weight", {16, 32}},
                                              {"attn_v.weight", {16, 32}},
                                              {"attn_output.weight", {32, 32}}};
const std::vector<wanted_tensor> mlp = {{"ffn_norm.weight", {32}},
                                        {"ffn_gate.weight", {48, 32}},
                                        {"ffn_up.weight", {48, 32}},
                                        {"ffn_down.weight", {32, 48}}};
const std::vector<wanted_tensor> head_norms = {{"attn_q_norm.weight", {16}}, {"attn_k_norm.weight", {16}}};

std::vector<wanted_tensor> operator+(std::vector<wanted_tensor> a, const std::vector<wanted_tensor>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::vector<std::byte> bytes_of(const io::archive& file, const io::tensor_info& t) {
  buffer scratch;
  const auto bytes = file.bytes(t, scratch).value();
  return {bytes.begin(), bytes.end()};
}

json slurp_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  return json::parse(file);
}

std::vector<float> values_of(const io::archive& file, const io::tensor_info& t) {
  const std::vector<std::byte> bytes = bytes_of(file, t);
  std::vector<float> values(static_cast<std::size_t>(t.dims.elements()));
  formats::decode(tensor_view(t.type, t.dims, bytes.data()), values).value();
  return values;
}

/// Everything `wanted` is in the archive and nothing else, with these values; `matrices` is the type of matrices.
void check_tensors(const io::archive& file, const std::vector<float_tensor>& wanted, dtype matrices) {
  CHECK(file.tensors().size() == wanted.size());
  for (const float_tensor& w : wanted) {
    INFO(w.name);
    const io::tensor_info* t = file.find(w.name);
    REQUIRE(t != nullptr);
    CHECK(t->dims.to_string() == w.dims.to_string());
    const bool vector = w.dims.rank() < 2 || w.name.find("ffn_gate_inp") != w.name.npos ||
                        w.name.find("conv1d") != w.name.npos || w.name.ends_with(".bias") ||
                        w.name.find("position_embd") != w.name.npos || w.name.find("token_types") != w.name.npos;
    CHECK(to_string(t->type) == to_string(vector ? dtype::f32 : matrices));
    const std::vector<float> got = values_of(file, *t);
    REQUIRE(got.size() == w.values.size());
    float worst = 0;
    for (std::size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::fabs(got[i] - w.values[i]));
    CHECK(worst <= (w.name.ends_with("ssm_a") ? 1e-5F : 0.0F));
    // Any piece of it is the same piece of the whole.
    const std::vector<std::byte> whole = bytes_of(file, *t);
    for (const auto& [from, length] : {std::pair<std::size_t, std::size_t>{0, 1},
                                       {whole.size() / 3, whole.size() / 2},
                                       {whole.size() - 1, 1},
                                       {1, whole.size() - 1}}) {
      std::vector<std::byte> piece(length);
      REQUIRE(file.read(*t, from, piece).has_value());
      CHECK(std::equal(piece.begin(), piece.end(), whole.begin() + static_cast<std::ptrdiff_t>(from)));
    }
  }
}

/// Written as a folder again, all tensors are what they were, or the family is known not to go back.
void check_way_back(const hf_family& f, const io::archive& model, const std::filesystem::path& like) {
  const std::filesystem::path out = like / "back";
  const auto done = convert_to_folder(model, like, out);
  INFO((done ? "" : done.error().to_string()));
  REQUIRE(done.has_value() != f.one_way);
  if (f.one_way) {
    CHECK(done.error().code == errc::unsupported);
    CHECK_FALSE(std::filesystem::exists(out));
    CHECK_FALSE(std::filesystem::exists(like / "back.partial"));
    return;
  }
  const io::archive before = io::archive::open(like / "model.safetensors").value();
  const io::archive after = io::archive::open(out / "model.safetensors").value();
  CHECK(after.tensors().size() == before.tensors().size());
  for (const io::tensor_info& t : before.tensors()) {
    INFO(t.name);
    const io::tensor_info* const same = after.find(t.name);
    REQUIRE(same != nullptr);
    CHECK(same->type == t.type);
    CHECK(same->dims == t.dims);
    CHECK(bytes_of(after, *same) == bytes_of(before, t));
  }
  CHECK(slurp_json(out / "config.json") == slurp_json(like / "config.json"));
}

/// Writes the folder that these tensors come from, and compares what it opens as.
io::archive check_family(const hf_family& f, json config, const std::vector<wanted_tensor>& wanted,
                         dtype matrices = dtype::f16, const std::string& prefix = "") {
  const temp_folder folder;
  const std::vector<float_tensor> expected = with_values(wanted);
  std::vector<float_tensor> stored;
  for (const float_tensor& t : expected)
    for (float_tensor& s : stored_as(f, t)) {
      s.name = prefix + s.name;
      stored.push_back(std::move(s));
    }
  std::reverse(stored.begin(), stored.end());  // the order of the file is not that of the model
  write_weights(folder / "model.safetensors", stored, matrices, matrices);
  write_file(folder / "config.json", config.dump());
  auto opened = open_model_archive(folder.path());
  INFO((opened ? "" : opened.error().to_string()));
  REQUIRE(opened.has_value());
  check_tensors(*opened, expected, matrices);
  CHECK(opened->tensors().front().name == "token_embd.weight");
  check_way_back(f, *opened, folder.path());
  return *opened;
}

std::string text(const io::archive& file, const std::string& key) {
  return std::string(file.metadata().string(key).value_or("none"));
}
std::int64_t count(const io::archive& file, const std::string& key) {
  return file.metadata().integer(key).value_or(-1);
}
double number(const io::archive& file, const std::string& key) { return file.metadata().number(key).value_or(-1); }

TEST_CASE("Llama folders: rows of Q and K in pairs, vectors in f32") {
  hf_family f{.architecture = "LlamaForCausalLM", .names = decoder_names(), .pairs = true};
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16}) {
    const io::archive file = check_family(f, decoder_config("LlamaForCausalLM"), decoder(attention + mlp), type);
    CHECK(text(file, "general.architecture") == "llama");
    CHECK(count(file, "general.file_type") == (type == dtype::f32 ? 0 : type == dtype::f16 ? 1 : 32));
    CHECK(count(file, "llama.embedding_length") == 32);
    CHECK(count(file, "llama.block_count") == 2);
    CHECK(count(file, "llama.feed_forward_length") == 48);
    CHECK(count(file, "llama.attention.head_count") == 2);
    CHECK(count(file, "llama.attention.head_count_kv") == 1);
    CHECK(count(file, "llama.attention.key_length") == 16);
    CHECK(count(file, "llama.rope.dimension_count") == 16);
    CHECK(count(file, "llama.context_length") == 512);
    CHECK(count(file, "llama.vocab_size") == 40);
    CHECK(number(file, "llama.attention.layer_norm_rms_epsilon") == Approx(1e-5));
    CHECK(number(file, "llama.rope.freq_base") == 10000);
  }
  SECTION("biases change their order too, and a tied head is left out") {
    json config = decoder_config("LlamaForCausalLM");
    config["tie_word_embeddings"] = true;
    check_family(
        f, config,
        decoder(attention + mlp + std::vector<wanted_tensor>{{"attn_q.bias", {32}}, {"attn_k.bias", {16}}}, false));
  }
  SECTION("experts of Mixtral") {
    f.names["ffn_gate_inp"] = "block_sparse_moe.gate";
    f.names["ffn_gate_exps"] = "block_sparse_moe.experts.{}.w1";
    f.names["ffn_up_exps"] = "block_sparse_moe.experts.{}.w3";
    f.names["ffn_down_exps"] = "block_sparse_moe.experts.{}.w2";
    json config = decoder_config("MixtralForCausalLM");
    config["num_local_experts"] = 11;  // two digits: "10" comes before "2" in the file
    config["num_experts_per_tok"] = 2;
    const io::archive file =
        check_family(f, config,
                     decoder(attention + std::vector<wanted_tensor>{{"ffn_norm.weight", {32}},
                                                                    {"ffn_gate_inp.weight", {11, 32}},
                                                                    {"ffn_gate_exps.weight", {11, 48, 32}},
                                                                    {"ffn_up_exps.weight", {11, 48, 32}},
                                                                    {"ffn_down_exps.weight", {11, 32, 48}}}));
    CHECK(count(file, "llama.expert_count") == 11);
    CHECK(count(file, "llama.expert_used_count") == 2);
  }
}

TEST_CASE("Llama 3's rotary scaling becomes factors") {
  const temp_folder folder;
  const hf_family f{.architecture = "LlamaForCausalLM", .names = decoder_names(), .pairs = true};
  std::vector<float_tensor> stored;
  for (const float_tensor& t : with_values(decoder(attention + mlp)))
    for (float_tensor& s : stored_as(f, t)) stored.push_back(std::move(s));
  write_weights(folder / "model.safetensors", stored);
  json config = decoder_config("LlamaForCausalLM");
  config["rope_theta"] = 500000.0;
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 8.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 8192}};
  write_file(folder / "config.json", config.dump());
  const io::archive file = open_model_archive(folder.path()).value();
  const io::tensor_info* t = file.find("rope_freqs.weight");
  REQUIRE(t != nullptr);
  const std::vector<float> factors = values_of(file, *t);
  REQUIRE(factors.size() == 8);
  // Wavelengths 2 pi 500000^(i/8): 6.3, 32, 167, 862, 4443, 22909, ... against 8192/4 = 2048 and 8192.
  CHECK(factors[0] == 1);
  CHECK(factors[3] == 1);
  const double smooth = (8192 / (2 * 3.14159265358979 * std::pow(500000.0, 0.5)) - 1) / 3;
  CHECK(factors[4] == Approx(1 / ((1 - smooth) / 8 + smooth)).epsilon(1e-5));
  CHECK(factors[5] == 8);
  CHECK(factors[7] == 8);
}

TEST_CASE("Relatives of Llama") {
  const hf_family f{.names = decoder_names(), .pairs = true};
  SECTION("SmolLM3") {
    const io::archive file = check_family(f, decoder_config("SmolLM3ForCausalLM"), decoder(attention + mlp));
    CHECK(text(file, "general.architecture") == "smollm3");
  }
  SECTION("Granite's multipliers") {
    json config = decoder_config("GraniteForCausalLM");
    config.update({{"attention_multiplier", 0.25},
                   {"embedding_multiplier", 12.0},
                   {"residual_multiplier", 0.5},
                   {"logits_scaling", 8.0}});
    const io::archive file = check_family(f, config, decoder(attention + mlp));
    CHECK(number(file, "granite.attention.scale") == 0.25);
    CHECK(number(file, "granite.embedding_scale") == 12);
    CHECK(number(file, "granite.residual_scale") == 0.5);
    CHECK(number(file, "granite.logit_scale") == 8);
  }
  SECTION("Ministral 3, as the text part of a multimodal model") {
    json text_config = decoder_config("Ministral3ForCausalLM");
    text_config["rope_parameters"] = {{"rope_type", "yarn"},
                                      {"rope_theta", 1e6},
                                      {"factor", 16.0},
                                      {"beta_fast", 32.0},
                                      {"beta_slow", 1.0},
                                      {"mscale_all_dim", 1.0},
                                      {"llama_4_scaling_beta", 0.125},
                                      {"original_max_position_embeddings", 128}};
    text_config.erase("rope_theta");
    const json config = {{"architectures", {"Mistral3ForConditionalGeneration"}}, {"text_config", text_config}};
    const io::archive file = check_family(f, config, decoder(attention + mlp), dtype::bf16, "language_model.");
    CHECK(text(file, "mistral3.rope.scaling.type") == "yarn");
    CHECK(number(file, "mistral3.rope.scaling.factor") == 16);
    CHECK(count(file, "mistral3.rope.scaling.original_context_length") == 128);
    CHECK(number(file, "mistral3.rope.scaling.yarn_log_multiplier") == 1);
    CHECK(number(file, "mistral3.attention.temperature_scale") == 0.125);
    CHECK(number(file, "mistral3.rope.freq_base") == 1e6);
    // A magnitude that is given is all of it: the reader multiplies by 1 + 0.1 ln 16.
    json given = config;
    given["text_config"]["rope_parameters"]["attention_factor"] = 1.5;
    const io::archive own = check_family(f, given, decoder(attention + mlp), dtype::bf16, "language_model.");
    CHECK(number(own, "mistral3.rope.scaling.attn_factor") == Approx(1.5 / (1 + 0.1 * std::log(16.0))));
    CHECK(number(own, "mistral3.rope.scaling.yarn_log_multiplier") == -1);
  }
}

TEST_CASE("Qwen2 and Qwen3 folders keep the order of rows") {
  const hf_family f{.names = decoder_names()};
  check_family(
      f, decoder_config("Qwen2ForCausalLM"),
      decoder(attention + mlp +
              std::vector<wanted_tensor>{{"attn_q.bias", {32}}, {"attn_k.bias", {16}}, {"attn_v.bias", {16}}}));
  CHECK(text(check_family(f, decoder_config("Qwen3ForCausalLM"), decoder(attention + head_norms + mlp)),
             "general.architecture") == "qwen3");
}

TEST_CASE("Qwen3-Embedding: names without 'model.', pooling of sentence-transformers") {
  const temp_folder folder;
  hf_family f{.names = decoder_names(), .layer = "layers."};
  f.names["token_embd"] = "embed_tokens";
  f.names["output_norm"] = "norm";
  std::vector<float_tensor> stored;
  const std::vector<float_tensor> expected = with_values(decoder(attention + head_norms + mlp, false));
  for (const float_tensor& t : expected)
    for (float_tensor& s : stored_as(f, t)) stored.push_back(std::move(s));
  write_weights(folder / "model.safetensors", stored, dtype::bf16, dtype::bf16);
  write_file(folder / "config.json", decoder_config("Qwen3Model").dump());
  write_file(folder / "modules.json", R"([{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
      {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}])");
  write_file(folder / "1_Pooling/config.json", R"({"pooling_mode_cls_token": false, "pooling_mode_lasttoken": true})");
  const io::archive file = open_model_archive(folder.path()).value();
  check_tensors(file, expected, dtype::bf16);
  CHECK(count(file, "qwen3.pooling_type") == 3);
  write_file(folder / "1_Pooling/config.json", R"({"pooling_mode_max_tokens": true})");
  CHECK(open_model_archive(folder.path()).error().code == errc::unsupported);
  write_file(folder / "1_Pooling/config.json", R"({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true})");
  CHECK(open_model_archive(folder.path()).error().code == errc::unsupported);
}

TEST_CASE("Qwen3 with experts, one tensor each or all in one") {
  hf_family f{.names = decoder_names()};
  f.names["ffn_gate_inp"] = "mlp.gate";
  f.names["ffn_gate_exps"] = "mlp.experts.{}.gate_proj";
  f.names["ffn_up_exps"] = "mlp.experts.{}.up_proj";
  f.names["ffn_down_exps"] = "mlp.experts.{}.down_proj";
  json config = decoder_config("Qwen3MoeForCausalLM");
  config.update({{"num_experts", 4}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 24}});
  const std::vector<wanted_tensor> experts = {{"ffn_norm.weight", {32}},
                                              {"ffn_gate_inp.weight", {4, 32}},
                                              {"ffn_gate_exps.weight", {4, 24, 32}},
                                              {"ffn_up_exps.weight", {4, 24, 32}},
                                              {"ffn_down_exps.weight", {4, 32, 24}}};
  const io::archive file = check_family(f, config, decoder(attention + head_norms + experts));
  CHECK(text(file, "general.architecture") == "qwen3moe");
  CHECK(count(file, "qwen3moe.expert_feed_forward_length") == 24);
  SECTION("an expert is missing") {
    config["num_experts"] = 5;
    const temp_folder folder;
    std::vector<float_tensor> stored;
    for (const float_tensor& t : with_values(decoder(attention + head_norms + experts)))
      for (float_tensor& s : stored_as(f, t)) stored.push_back(std::move(s));
    write_weights(folder / "model.safetensors", stored);
    write_file(folder / "config.json", config.dump());
    const auto opened = open_model_archive(folder.path());
    REQUIRE(!opened);
    CHECK(opened.error().message.find("4 experts") != std::string::npos);
  }
}

TEST_CASE("Qwen3.5: value heads change their order, norms are a distance from 1") {
  hf_family f{.names = decoder_names(),
              .norms_plus_one = true,
              .plain_norms = {"ssm_norm"},
              .key_heads = 2,
              .value_heads = 6,
              .key_dim = 4,
              .value_dim = 8};
  f.names["post_attention_norm"] = "post_attention_layernorm";
  f.names["attn_qkv"] = "linear_attn.in_proj_qkv";
  f.names["attn_gate"] = "linear_attn.in_proj_z";
  f.names["ssm_beta"] = "linear_attn.in_proj_b";
  f.names["ssm_alpha"] = "linear_attn.in_proj_a";
  f.names["ssm_a"] = "linear_attn.A_log";
  f.names["ssm_dt.bias"] = "linear_attn.dt_bias";
  f.names["ssm_conv1d"] = "linear_attn.conv1d";
  f.names["ssm_norm"] = "linear_attn.norm";
  f.names["ssm_out"] = "linear_attn.out_proj";
  json config = decoder_config("Qwen3_5ForCausalLM");
  config.update({{"linear_num_key_heads", 2},
                 {"linear_num_value_heads", 6},
                 {"linear_key_head_dim", 4},
                 {"linear_value_head_dim", 8},
                 {"linear_conv_kernel_dim", 4},
                 {"full_attention_interval", 4},
                 {"layer_types", {"linear_attention", "linear_attention"}}});
  config["rope_parameters"] = {
      {"rope_type", "default"}, {"rope_theta", 1e7}, {"partial_rotary_factor", 0.25}, {"mrope_section", {1, 1, 0}}};
  const std::vector<wanted_tensor> delta = {{"attn_norm.weight", {32}},
                                            {"attn_qkv.weight", {64, 32}},
                                            {"attn_gate.weight", {48, 32}},
                                            {"ssm_conv1d.weight", {64, 4}},
                                            {"ssm_dt.bias", {6}},
                                            {"ssm_a", {6}},
                                            {"ssm_beta.weight", {6, 32}},
                                            {"ssm_alpha.weight", {6, 32}},
                                            {"ssm_norm.weight", {8}},
                                            {"ssm_out.weight", {32, 48}},
                                            {"post_attention_norm.weight", {32}}};
  const std::vector<wanted_tensor> dense(mlp.begin() + 1, mlp.end());
  const io::archive file = check_family(f, config, decoder(delta + dense), dtype::bf16);
  CHECK(count(file, "qwen35.ssm.state_size") == 4);
  CHECK(count(file, "qwen35.ssm.group_count") == 2);
  CHECK(count(file, "qwen35.ssm.time_step_rank") == 6);
  CHECK(count(file, "qwen35.ssm.inner_size") == 48);
  CHECK(count(file, "qwen35.ssm.conv_kernel") == 4);
  CHECK(count(file, "qwen35.rope.dimension_count") == 4);
  CHECK(file.metadata().integers("qwen35.rope.dimension_sections").value() == std::vector<std::int64_t>{1, 1, 0, 0});
  CHECK(count(file, "qwen35.full_attention_interval") == 4);
}

TEST_CASE("Gemma folders") {
  hf_family f{.names = decoder_names(), .norms_plus_one = true};
  f.names["post_attention_norm"] = "post_attention_layernorm";
  f.names["ffn_norm"] = "pre_feedforward_layernorm";
  f.names["post_ffw_norm"] = "post_feedforward_layernorm";
  const std::vector<wanted_tensor> post = {{"post_attention_norm.weight", {32}}, {"post_ffw_norm.weight", {32}}};
  SECTION("2") {
    json config = decoder_config("Gemma2ForCausalLM");
    config.update({{"attn_logit_softcapping", 50.0}, {"final_logit_softcapping", 30.0}, {"sliding_window", 16}});
    const io::archive file = check_family(f, config, decoder(attention + mlp + post, false));
    CHECK(number(file, "gemma2.attn_logit_softcapping") == 50);
    CHECK(number(file, "gemma2.final_logit_softcapping") == 30);
    CHECK(count(file, "gemma2.attention.sliding_window") == 16);
    CHECK(number(file, "gemma2.attention.scale") == 0.0625);
    config["query_pre_attn_scalar"] = 144;
    CHECK(number(check_family(f, config, decoder(attention + mlp + post, false)), "gemma2.attention.scale") ==
          Approx(1.0 / 12));
  }
  SECTION("3, from a multimodal model whose configuration leaves out what is usual") {
    json config = {{"architectures", {"Gemma3ForConditionalGeneration"}},
                   {"text_config",
                    {{"hidden_size", 32},
                     {"num_hidden_layers", 2},
                     {"intermediate_size", 48},
                     {"head_dim", 16},
                     {"sliding_window", 16},
                     {"rope_scaling", {{"factor", 8.0}, {"rope_type", "linear"}}}}}};
    const io::archive file =
        check_family(f, config, decoder(attention + head_norms + mlp + post, false), dtype::bf16, "language_model.");
    CHECK(count(file, "gemma3.attention.head_count") == 8);
    CHECK(count(file, "gemma3.attention.head_count_kv") == 4);
    CHECK(number(file, "gemma3.rope.freq_base") == 1e6);
    CHECK(number(file, "gemma3.rope.freq_base_swa") == 1e4);
    CHECK(text(file, "gemma3.rope.scaling.type") == "linear");
    CHECK(number(file, "gemma3.rope.scaling.factor") == 8);
    CHECK(count(file, "gemma3.attention.sliding_window") == 16);
    CHECK(count(file, "gemma3.attention.sliding_window_pattern") == 6);
    CHECK(number(file, "gemma3.attention.scale") == 0.0625);
    config["text_config"].update(
        {{"query_pre_attn_scalar", 64}, {"layer_types", {"sliding_attention", "full_attention"}}});
    const io::archive other =
        check_family(f, config, decoder(attention + head_norms + mlp + post, false), dtype::bf16, "language_model.");
    CHECK(count(other, "gemma3.attention.sliding_window_pattern") == 2);
    CHECK(number(other, "gemma3.attention.scale") == 0.125);
  }
  SECTION("4: norms as they are, factors of the global layers' rotation") {
    f.norms_plus_one = false;
    f.names["layer_output_scale.weight"] = "layer_scalar";
    f.names["rope_freqs"] = "unused.vision";  // has no tensor in the folder: left out like an image tower
    json config = decoder_config("Gemma4ForCausalLM");
    config.update({{"layer_types", {"sliding_attention", "full_attention"}},
                   {"global_head_dim", 32},
                   {"num_kv_shared_layers", 1},
                   {"sliding_window", 16},
                   {"final_logit_softcapping", 30.0},
                   {"num_global_key_value_heads", 2},
                   {"use_double_wide_mlp", true}});
    config["rope_parameters"] = {
        {"full_attention", {{"rope_type", "proportional"}, {"partial_rotary_factor", 0.25}, {"rope_theta", 1e6}}},
        {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}};
    const temp_folder folder;
    std::vector<float_tensor> expected = with_values(decoder(
        attention + head_norms + mlp + post + std::vector<wanted_tensor>{{"layer_output_scale.weight", {1}}}, false));
    std::vector<float_tensor> stored;
    for (const float_tensor& t : expected)
      for (float_tensor& s : stored_as(f, t)) stored.push_back(std::move(s));
    write_weights(folder / "model.safetensors", stored);
    write_file(folder / "config.json", config.dump());
    const io::archive file = open_model_archive(folder.path()).value();
    float_tensor factors{"rope_freqs.weight", {16}, std::vector<float>(16, 1e30F)};
    for (int i = 0; i < 4; ++i) factors.values[static_cast<std::size_t>(i)] = 1;
    expected.push_back(factors);
    check_tensors(file, expected, dtype::f32);
    CHECK(count(file, "gemma4.attention.key_length") == 32);
    CHECK(count(file, "gemma4.attention.key_length_swa") == 16);
    CHECK(count(file, "gemma4.attention.shared_kv_layers") == 1);
    CHECK(file.metadata().integers("gemma4.feed_forward_length").value() == std::vector<std::int64_t>{48, 96});
    CHECK(file.metadata().integers("gemma4.attention.head_count_kv").value() == std::vector<std::int64_t>{1, 2});
    CHECK(number(file, "gemma4.rope.freq_base") == 1e6);
    CHECK(number(file, "gemma4.rope.freq_base_swa") == 1e4);
    const auto* pattern =
        std::get_if<std::vector<bool>>(file.metadata().find("gemma4.attention.sliding_window_pattern"));
    REQUIRE(pattern != nullptr);
    CHECK(*pattern == std::vector<bool>{true, false});
  }
}

TEST_CASE("Phi-3 folders: tensors that hold several, factors from the configuration") {
  hf_family f{.names = decoder_names()};
  f.names["attn_qkv"] = "self_attn.qkv_proj";
  f.names["ffn_up"] = "mlp.gate_up_proj";
  json config = decoder_config("Phi3ForCausalLM");
  config.erase("head_dim");
  const std::vector<wanted_tensor> layer = {{"attn_norm.weight", {32}},       {"attn_qkv.weight", {64, 32}},
                                            {"attn_output.weight", {32, 32}}, {"ffn_norm.weight", {32}},
                                            {"ffn_up.weight", {96, 32}},      {"ffn_down.weight", {32, 48}}};
  const io::archive plain = check_family(f, config, decoder(layer));
  CHECK(count(plain, "phi3.attention.sliding_window") == 0);
  CHECK(count(plain, "phi3.rope.dimension_count") == 16);

  const temp_folder folder;
  std::vector<float_tensor> expected = with_values(decoder(layer)), stored;
  for (const float_tensor& t : expected)
    for (float_tensor& s : stored_as(f, t)) stored.push_back(std::move(s));
  config["sliding_window"] = 20;
  config["original_max_position_embeddings"] = 128;
  config["rope_scaling"] = {{"type", "longrope"}, {"long_factor", json::array()}, {"short_factor", json::array()}};
  float_tensor longs{"rope_factors_long.weight", {8}, {}}, shorts{"rope_factors_short.weight", {8}, {}};
  for (int i = 0; i < 8; ++i) {
    longs.values.push_back(static_cast<float>(i) + 1.5F);
    shorts.values.push_back(1 + static_cast<float>(i) / 8);
    config["rope_scaling"]["long_factor"].push_back(longs.values.back());
    config["rope_scaling"]["short_factor"].push_back(shorts.values.back());
  }
  write_weights(folder / "model.safetensors", stored);
  write_file(folder / "config.json", config.dump());
  const io::archive file = open_model_archive(folder.path()).value();
  expected.push_back(longs);
  expected.push_back(shorts);
  check_tensors(file, expected, dtype::f32);
  CHECK(text(file, "phi3.rope.scaling.type") == "longrope");
  CHECK(count(file, "phi3.rope.scaling.original_context_length") == 128);
  CHECK(number(file, "phi3.rope.scaling.attn_factor") == Approx(std::sqrt(1 + std::log(4.0) / std::log(128.0))));
  // Newer files keep the number in the parameters of the rotation.
  config.erase("original_max_position_embeddings");
  config["rope_scaling"]["original_max_position_embeddings"] = 256;
  write_file(folder / "config.json", config.dump());
  const io::archive newer = open_model_archive(folder.path()).value();
  CHECK(count(newer, "phi3.rope.scaling.original_context_length") == 256);
  CHECK(number(newer, "phi3.rope.scaling.attn_factor") == Approx(std::sqrt(1 + std::log(2.0) / std::log(256.0))));
}

/// gpt-oss names its tensors like others but for these.
hf_family gpt_oss_names() {
  hf_family f{.names = decoder_names()};
  f.names["post_attention_norm"] = "post_attention_layernorm";
  f.names["attn_sinks.weight"] = "self_attn.sinks";
  f.names["ffn_gate_inp"] = "mlp.router";
  f.names["ffn_down_exps.bias"] = "mlp.experts.down_proj_bias";
  return f;
}

TEST_CASE("gpt-oss folders: rows of gate and up alternate") {
  const hf_family f = gpt_oss_names();
  json config = decoder_config("GptOssForCausalLM");
  config.update(
      {{"num_local_experts", 3}, {"num_experts_per_tok", 2}, {"sliding_window", 16}, {"intermediate_size", 32}});
  const std::vector<wanted_tensor> plain = {{"post_attention_norm.weight", {32}}, {"attn_sinks.weight", {2}},
                                            {"attn_output.bias", {32}},           {"ffn_gate_inp.weight", {3, 32}},
                                            {"ffn_gate_inp.bias", {3}},           {"ffn_down_exps.bias", {3, 32}}};
  std::vector<float_tensor> expected = with_values(decoder(attention + plain)), stored;
  for (const float_tensor& t : expected)
    for (float_tensor& s : stored_as(f, t)) stored.push_back(std::move(s));
  const bool quantized = GENERATE(false, true);
  std::map<std::string, std::vector<std::byte>> codes;  // MXFP4 blocks as GGUF has them
  std::vector<std::pair<io::tensor_plan, std::vector<std::byte>>> raw;
  for (int layer = 0; layer < 2; ++layer) {
    const std::string to = "blk." + std::to_string(layer) + ".ffn_";
    const std::string from = "model.layers." + std::to_string(layer) + ".mlp.experts.";
    const float_tensor gate{to + "gate_exps.bias", {3, 32}, exact_values({3, 32}, 91)};
    const float_tensor up{to + "up_exps.bias", {3, 32}, exact_values({3, 32}, 92)};
    float_tensor both{from + "gate_up_proj_bias", {3, 64}, std::vector<float>(192)};
    for (std::size_t e = 0; e < 3; ++e)
      for (std::size_t i = 0; i < 32; ++i) {
        both.values[e * 64 + 2 * i] = gate.values[e * 32 + i];
        both.values[e * 64 + 2 * i + 1] = up.values[e * 32 + i];
      }
    expected.push_back(gate);
    expected.push_back(up);
    stored.push_back(both);
    for (const bool down : {false, true}) {
      const std::size_t n = down ? 32 : 64;  // rows of the stored matrix, 32 columns
      if (!quantized) {                      // [expert, in, out]
        const shape dims{3, 32, static_cast<std::int64_t>(n)};
        float_tensor matrix{from + (down ? "down_proj" : "gate_up_proj"), dims, exact_values(dims, 77)};
        for (const std::string& part :
             down ? std::vector<std::string>{"down"} : std::vector<std::string>{"gate", "up"}) {
          float_tensor t{to + part + "_exps.weight", {3, 32, 32}, std::vector<float>(3 * 32 * 32)};
          for (std::size_t e = 0; e < 3; ++e)
            for (std::size_t r = 0; r < 32; ++r)
              for (std::size_t c = 0; c < 32; ++c)
                t.values[(e * 32 + r) * 32 + c] =
                    matrix.values[(e * 32 + c) * n + (down ? r : 2 * r + (part == "up" ? 1 : 0))];
          expected.push_back(t);
        }
        stored.push_back(matrix);
        continue;
      }
      tiny_random random(static_cast<std::uint64_t>(layer * 2 + down + 5));
      std::vector<std::byte> blocks, scales;
      for (std::size_t e = 0; e < 3; ++e)
        for (std::size_t r = 0; r < n; ++r) {
          const std::string name = to + (down ? "down" : r % 2 == 0 ? "gate" : "up") + "_exps.weight";
          std::vector<unsigned> values(32);
          for (unsigned& v : values) v = static_cast<unsigned>(random.uniform() * 16);
          scales.push_back(static_cast<std::byte>(120 + r % 8));
          for (std::size_t j = 0; j < 16; ++j)
            blocks.push_back(static_cast<std::byte>(values[2 * j] | values[2 * j + 1] << 4));
          codes[name].push_back(scales.back());
          for (std::size_t j = 0; j < 16; ++j)
            codes[name].push_back(static_cast<std::byte>(values[j] | values[j + 16] << 4));
        }
      const std::string name = from + (down ? "down_proj" : "gate_up_proj");
      raw.push_back({{name + "_blocks", dtype::u8, {3, static_cast<std::int64_t>(n), 1, 16}, 0}, blocks});
      raw.push_back({{name + "_scales", dtype::u8, {3, static_cast<std::int64_t>(n), 1}, 0}, scales});
    }
  }
  const temp_folder folder;
  std::vector<io::tensor_plan> plans;
  for (const float_tensor& t : stored) plans.push_back({t.name, dtype::f32, t.dims, 0});
  for (const auto& [plan, bytes] : raw) plans.push_back(plan);
  io::writer out =
      std::move(io::writer::create(folder / "model.safetensors", io::container::safetensors, {}, plans)).value();
  for (const float_tensor& t : stored) out.write(std::as_bytes(std::span(t.values))).value();
  for (const auto& [plan, bytes] : raw) out.write(bytes).value();
  out.finish().value();
  write_file(folder / "config.json", config.dump());
  auto opened = open_model_archive(folder.path());
  INFO((opened ? "" : opened.error().to_string()));
  REQUIRE(opened.has_value());
  CHECK(opened->tensors().size() == expected.size() + codes.size());
  for (const auto& [name, bytes] : codes) {
    INFO(name);
    const io::tensor_info* t = opened->find(name);
    REQUIRE(t != nullptr);
    CHECK(t->type == dtype::mxfp4);
    CHECK(t->dims.to_string() == "[3, 32, 32]");
    CHECK(bytes_of(*opened, *t) == bytes);
  }
  for (const float_tensor& w : expected) {
    INFO(w.name);
    const io::tensor_info* t = opened->find(w.name);
    REQUIRE(t != nullptr);
    CHECK(values_of(*opened, *t) == w.values);
  }
  CHECK(text(*opened, "general.architecture") == "gpt-oss");
  CHECK(count(*opened, "gpt-oss.expert_feed_forward_length") == 32);
  CHECK(count(*opened, "general.file_type") == (quantized ? 38 : 0));
}

TEST_CASE("Encoders") {
  SECTION("BERT") {
    hf_family f{.names = {{"token_embd", "embeddings.word_embeddings"},
                          {"token_types", "embeddings.token_type_embeddings"},
                          {"position_embd", "embeddings.position_embeddings"},
                          {"token_embd_norm", "embeddings.LayerNorm"},
                          {"attn_q", "attention.self.query"},
                          {"attn_k", "attention.self.key"},
                          {"attn_v", "attention.self.value"},
                          {"attn_output", "attention.output.dense"},
                          {"attn_output_norm", "attention.output.LayerNorm"},
                          {"ffn_up", "intermediate.dense"},
                          {"ffn_down", "output.dense"},
                          {"layer_output_norm", "output.LayerNorm"}},
                .layer = "encoder.layer."};
    const json config = {{"architectures", {"BertModel"}}, {"hidden_size", 32},       {"num_hidden_layers", 1},
                         {"num_attention_heads", 2},       {"intermediate_size", 48}, {"max_position_embeddings", 64},
                         {"layer_norm_eps", 1e-12},        {"type_vocab_size", 2},    {"vocab_size", 40}};
    std::vector<wanted_tensor> wanted = {{"token_embd.weight", {40, 32}},
                                         {"token_types.weight", {2, 32}},
                                         {"position_embd.weight", {64, 32}},
                                         {"token_embd_norm.weight", {32}},
                                         {"token_embd_norm.bias", {32}}};
    for (const char* part : {"attn_q", "attn_k", "attn_v", "attn_output"}) {
      wanted.push_back({"blk.0." + std::string(part) + ".weight", {32, 32}});
      wanted.push_back({"blk.0." + std::string(part) + ".bias", {32}});
    }
    for (const char* norm : {"attn_output_norm", "layer_output_norm"})
      for (const char* end : {".weight", ".bias"}) wanted.push_back({"blk.0." + std::string(norm) + end, {32}});
    wanted.push_back({"blk.0.ffn_up.weight", {48, 32}});
    wanted.push_back({"blk.0.ffn_up.bias", {48}});
    wanted.push_back({"blk.0.ffn_down.weight", {32, 48}});
    wanted.push_back({"blk.0.ffn_down.bias", {32}});
    const io::archive file = check_family(f, config, wanted, dtype::f16, "bert.");
    CHECK(text(file, "general.architecture") == "bert");
    CHECK(number(file, "bert.attention.layer_norm_epsilon") == Approx(1e-12));
    CHECK(count(file, "bert.context_length") == 64);
    CHECK(file.metadata().boolean("bert.attention.causal").value() == false);
    CHECK(count(file, "tokenizer.ggml.token_type_count") == 2);
  }
  SECTION("Nomic's") {
    hf_family f{.names = {{"token_embd", "embeddings.word_embeddings"},
                          {"token_types", "embeddings.token_type_embeddings"},
                          {"token_embd_norm", "emb_ln"},
                          {"attn_qkv", "attn.Wqkv"},
                          {"attn_output", "attn.out_proj"},
                          {"attn_output_norm", "norm1"},
                          {"ffn_up", "mlp.fc11"},
                          {"ffn_gate", "mlp.fc12"},
                          {"ffn_down", "mlp.fc2"},
                          {"layer_output_norm", "norm2"}},
                .layer = "encoder.layers."};
    const json config = {{"architectures", {"NomicBertModel"}},
                         {"n_embd", 32},
                         {"n_layer", 1},
                         {"n_head", 2},
                         {"n_inner", 48},
                         {"n_positions", 8192},
                         {"layer_norm_epsilon", 1e-12},
                         {"rotary_emb_base", 1000},
                         {"type_vocab_size", 2}};
    const io::archive file = check_family(f, config,
                                          {{"token_embd.weight", {40, 32}},
                                           {"token_types.weight", {2, 32}},
                                           {"token_embd_norm.weight", {32}},
                                           {"token_embd_norm.bias", {32}},
                                           {"blk.0.attn_qkv.weight", {96, 32}},
                                           {"blk.0.attn_output.weight", {32, 32}},
                                           {"blk.0.attn_output_norm.weight", {32}},
                                           {"blk.0.ffn_up.weight", {48, 32}},
                                           {"blk.0.ffn_gate.weight", {48, 32}},
                                           {"blk.0.ffn_down.weight", {32, 48}},
                                           {"blk.0.layer_output_norm.weight", {32}}});
    CHECK(text(file, "general.architecture") == "nomic-bert");
    CHECK(count(file, "nomic-bert.context_length") == 2048);
    CHECK(number(file, "nomic-bert.rope.freq_base") == 1000);
    CHECK(file.metadata().boolean("nomic-bert.attention.causal").value() == false);
  }
}

// ---- what damaged folders say ----

struct damaged_folder {
  temp_folder folder;
  json config = decoder_config("LlamaForCausalLM");
  std::vector<float_tensor> stored;
  damaged_folder() {
    const hf_family f{.names = decoder_names(), .pairs = true};
    for (const float_tensor& t : with_values(decoder(attention + mlp)))
      for (float_tensor& s : stored_as(f, t)) stored.push_back(std::move(s));
  }
  error open() {
    write_weights(folder / "model.safetensors", stored);
    write_file(folder / "config.json", config.dump());
    auto opened = open_model_archive(folder.path());
    REQUIRE(!opened);
    return opened.error();
  }
  float_tensor& tensor(const std::string& name) {
    for (float_tensor& t : stored)
      if (t.name == name) return t;
    throw std::invalid_argument(name);
  }
};

bool has(const error& e, const std::string& part) { return e.to_string().find(part) != std::string::npos; }

TEST_CASE("Folders that cannot be translated say what is wrong") {
  damaged_folder d;
  SECTION("an architecture that nobody knows") {
    d.config["architectures"] = {"FooForCausalLM"};
    const error e = d.open();
    CHECK(e.code == errc::unsupported);
    CHECK(has(e, "FooForCausalLM"));
    CHECK(has(e, "Qwen3ForCausalLM"));
  }
  SECTION("a missing number") {
    d.config.erase("hidden_size");
    CHECK(has(d.open(), "hidden_size"));
  }
  SECTION("a huge number") {
    d.config["num_hidden_layers"] = 1e18;
    CHECK(has(d.open(), "num_hidden_layers"));
  }
  SECTION("a number that is text") {
    d.config["num_attention_heads"] = "two";
    CHECK(has(d.open(), "num_attention_heads"));
  }
  SECTION("more layers than weights") {
    d.config["num_hidden_layers"] = 3;
    CHECK(has(d.open(), "layer 2"));
  }
  SECTION("fewer layers than weights") {
    d.config["num_hidden_layers"] = 1;
    CHECK(has(d.open(), "1 layers"));
  }
  SECTION("rows that are no heads") {
    d.config["head_dim"] = 12;
    CHECK(has(d.open(), "q_proj"));
  }
  SECTION("a tensor that the family does not have") {
    d.stored.push_back({"model.layers.0.mlp.strange.weight", {2, 2}, {1, 2, 3, 4}});
    const error e = d.open();
    CHECK(e.code == errc::unsupported);
    CHECK(has(e, "strange"));
  }
  SECTION("no embedding") {
    std::erase_if(d.stored, [](const float_tensor& t) { return t.name == "model.embed_tokens.weight"; });
    CHECK(has(d.open(), "embedding"));
  }
  SECTION("an embedding of another width") {
    d.tensor("model.embed_tokens.weight").dims = {32, 40};
    CHECK(has(d.open(), "token_embd"));
  }
  SECTION("rotary scaling that nobody knows") {
    d.config["rope_scaling"] = {{"type", "dynamic"}, {"factor", 2.0}};
    CHECK(has(d.open(), "dynamic"));
  }
}

TEST_CASE("What a family cannot compute is refused, not left out") {
  struct refused {
    const char* architecture;
    json values;
    const char* key;  ///< That the message names.
    errc code = errc::unsupported;
  };
  const json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}};
  const auto yarn_with = [&](const char* key, double value) {
    json with = yarn;
    with[key] = value;
    return json{{"rope_scaling", with}};
  };
  const json delta = {{"linear_num_key_heads", 2},
                      {"linear_num_value_heads", 4},
                      {"linear_key_head_dim", 4},
                      {"linear_value_head_dim", 4},
                      {"linear_conv_kernel_dim", 4}};
  const auto delta_with = [&](const char* key, const json& value) {
    json with = delta;
    with[key] = value;
    return with;
  };
  const refused cases[] = {
      {"LlamaForCausalLM", yarn_with("extrapolation_factor", 0.5), "extrapolation_factor"},
      {"LlamaForCausalLM", yarn_with("attention_factor", -1), "attention_factor", errc::malformed},
      {"LlamaForCausalLM", yarn_with("original_max_position_embeddings", 1e300), "original_max_position_embeddings",
       errc::malformed},
      {"SmolLM3ForCausalLM", {{"no_rope_layers", {1, 0}}}, "no_rope_layers"},
      {"SmolLM3ForCausalLM", {{"no_rope_layers", {1}}}, "no_rope_layers"},
      {"SmolLM3ForCausalLM", {{"no_rope_layer_interval", 3}}, "no_rope_layers"},
      {"Qwen2ForCausalLM", {{"use_sliding_window", true}}, "use_sliding_window"},
      {"Gemma2ForCausalLM", {{"layer_types", {"full_attention", "sliding_attention"}}}, "layer_types"},
      {"Gemma3ForCausalLM",
       {{"num_hidden_layers", 3}, {"layer_types", {"sliding_attention", "full_attention", "full_attention"}}},
       "layer_types"},
      {"BertModel", {{"hidden_act", "relu"}}, "hidden_act"},
      {"NomicBertModel", {{"activation_function", "gelu"}}, "activation_function"},
      {"NomicBertModel", {{"rotary_emb_fraction", 0.5}}, "rotary_emb_fraction"},
      {"NomicBertModel", {{"prenorm", true}}, "prenorm"},
      {"Qwen3_5ForCausalLM", delta_with("partial_rotary_factor", 1e300), "partial_rotary_factor", errc::malformed},
      {"Qwen3_5ForCausalLM", delta_with("partial_rotary_factor", -0.5), "partial_rotary_factor", errc::malformed},
      {"Qwen3_5ForCausalLM", delta_with("linear_value_head_dim", 2147483647), "linear_", errc::malformed},
  };
  for (const refused& r : cases) {
    INFO(r.architecture << " " << r.values.dump());
    damaged_folder d;
    d.config["architectures"] = {r.architecture};
    d.config.update(r.values);
    const error e = d.open();
    INFO(e.to_string());
    CHECK(e.code == r.code);
    CHECK(has(e, r.key));
  }
  // The usual values, spelled out.
  const hf_family f{.names = decoder_names(), .pairs = true};
  json config = decoder_config("SmolLM3ForCausalLM");
  config.update({{"no_rope_layers", {1, 1}}, {"no_rope_layer_interval", 4}, {"use_sliding_window", false}});
  check_family(f, config, decoder(attention + mlp));
}

TEST_CASE("Folders with damaged files") {
  damaged_folder d;
  d.config.erase("hidden_size");
  CHECK(!d.open().message.empty());  // writes the files
  write_file(d.folder / "config.json", decoder_config("LlamaForCausalLM").dump());
  REQUIRE(open_model_archive(d.folder.path()).has_value());
  SECTION("no config.json") {
    std::filesystem::remove(d.folder / "config.json");
    const auto opened = open_model_archive(d.folder.path());
    CHECK(opened.error().code == errc::not_found);
    CHECK(has(opened.error(), "config.json"));
  }
  SECTION("no weights") {
    std::filesystem::remove(d.folder / "model.safetensors");
    CHECK(open_model_archive(d.folder.path()).error().code == errc::not_found);
  }
  SECTION("a shard is missing") {
    write_file(d.folder / "model.safetensors.index.json",
               R"({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}})");
    CHECK(has(open_model_archive(d.folder.path()).error(), "model-00001-of-00002.safetensors"));
  }
  SECTION("the weights are cut") {
    std::filesystem::resize_file(d.folder / "model.safetensors", 5000);
    CHECK(!open_model_archive(d.folder.path()));
  }
  SECTION("JSON that is none, too deep, or no object") {
    for (const std::string& text :
         {std::string("{"), std::string(100000, '['), std::string("[]"), std::string("\xFF{}")}) {
      write_file(d.folder / "config.json", text);
      CHECK(open_model_archive(d.folder.path()).error().code == errc::malformed);
    }
  }
  SECTION("a tokenizer that is none") {
    write_file(d.folder / "tokenizer.json", "{}");
    CHECK(has(open_model_archive(d.folder.path()).error(), "tokenizer.json"));
  }
}

// ---- the shared models ----

void check_same_logits(const std::filesystem::path& a, const std::filesystem::path& b, double tolerance) {
  std::vector<float> rows[2];
  for (const int i : {0, 1}) {
    const model m = model::open(i == 0 ? a : b).value();
    session s = m.new_session().value();
    std::vector<token_id> ids;
    for (token_id id = 1; id < 40; ++id) ids.push_back(id * 7 % m.info().n_vocab);
    REQUIRE(s.prefill(ids).has_value());
    const auto logits = s.logits();
    rows[i].assign(logits.begin(), logits.end());
  }
  REQUIRE(rows[0].size() == rows[1].size());
  double worst = 0;
  for (std::size_t i = 0; i < rows[0].size(); ++i)
    worst = std::max(worst, static_cast<double>(std::fabs(rows[0][i] - rows[1][i])));
  CHECK(worst <= tolerance);
}

TEST_CASE("The shared folder is the shared file") {
  FLYWHEEL_REQUIRE_SHARED(folder, "family/models/tiny-base/hf");
  FLYWHEEL_REQUIRE_SHARED(file, "family/models/tiny-base/gguf/tiny-base-f16.gguf");
  const io::archive translated = open_model_archive(folder).value();
  const io::archive original = io::archive::open(file).value();
  for (const io::entry& e : original.metadata().entries()) {
    if (e.key.starts_with("general.") && e.key != "general.architecture" && e.key != "general.file_type") continue;
    INFO(e.key);
    const io::value* value = translated.metadata().find(e.key);
    REQUIRE(value != nullptr);
    CHECK(*value == e.value);
  }
  REQUIRE(translated.tensors().size() == original.tensors().size());
  for (const io::tensor_info& t : original.tensors()) {
    INFO(t.name);
    const io::tensor_info* same = translated.find(t.name);
    REQUIRE(same != nullptr);
    CHECK(same->type == t.type);
    CHECK(bytes_of(translated, *same) == bytes_of(original, t));
  }
  check_same_logits(folder, file, 0);
}

TEST_CASE("The shared adapters' base, f32, has the same logits from its folder") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/adapters/base_hf");
  FLYWHEEL_REQUIRE_SHARED(file, "conformance/adapters/base.gguf");
  check_same_logits(folder, file, 0);
}

}  // namespace
