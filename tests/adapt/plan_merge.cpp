// Recipes resolved against their models: methods, inputs and numbers of every tensor, vocabularies, and what does not
// fit.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "flywheel/adapt/recipe.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/text/tokenizer.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::adapt;
using namespace flywheel::test;

namespace {

using plan_edit = std::function<void(io::metadata&, std::vector<tiny_tensor>&)>;

/// Models a, b, ... in a folder, and plans of recipes about them.
struct plan_folder {
  temp_folder folder;

  void add(const std::string& name, const tiny_model& m, const plan_edit& edit = {}) {
    write_tiny_model(folder / name, m, edit);
  }
  [[nodiscard]] result<merge_plan> plan(const std::string& yaml) const {
    return plan_merge(recipe::parse(yaml).value(), folder.path());
  }
  /// The error of a recipe that must not be planned.
  [[nodiscard]] std::string refusal(const std::string& yaml, const std::vector<std::string>& parts) const {
    const auto planned = plan(yaml);
    INFO(yaml);
    REQUIRE(!planned);
    const std::string text = planned.error().to_string();
    INFO(text);
    for (const std::string& part : parts) CHECK(text.find(part) != std::string::npos);
    return text;
  }
};

tiny_model layered(std::uint64_t seed, std::int32_t layers = 4) {
  tiny_model m;
  m.layers = layers;
  m.seed = seed;
  m.hidden = 16;
  m.heads = 2;
  m.kv_heads = 1;
  m.ffn = 24;
  m.vocab = 300;
  return m;
}

const merge_step& step_of(const merge_plan& plan, std::string_view name) {
  const auto found = std::find_if(plan.steps.begin(), plan.steps.end(), [&](const auto& s) { return s.name == name; });
  INFO(name);
  REQUIRE(found != plan.steps.end());
  return *found;
}

/// The values of a parameter in a step.
std::vector<double> numbers_of(const merge_step& step, std::string_view name) {
  std::size_t at = 0;
  for (const merge::parameter_info& p : step.how->parameters) {
    const std::size_t n = p.per_model ? step.inputs.size() : 1;
    if (p.name == name)
      return {step.parameters.begin() + static_cast<std::ptrdiff_t>(at),
              step.parameters.begin() + static_cast<std::ptrdiff_t>(at + n)};
    at += n;
  }
  FAIL("no such parameter");
  return {};
}

void check_numbers(const merge_plan& plan, std::string_view tensor, std::string_view name,
                   const std::vector<double>& expected) {
  const std::vector<double> got = numbers_of(step_of(plan, tensor), name);
  INFO(tensor << " " << name);
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(std::abs(got[i] - expected[i]) < 1e-12);
}

std::vector<float> plan_floats(const io::archive& from, std::string_view name) {
  const io::tensor_info* tensor = from.find(name);
  REQUIRE(tensor != nullptr);
  buffer scratch;
  const auto bytes = from.bytes(*tensor, scratch).value();
  std::vector<float> values(static_cast<std::size_t>(tensor->dims.elements()));
  formats::decode(tensor_view(tensor->type, tensor->dims, bytes.data()), values).value();
  return values;
}

std::vector<float> plan_row(const std::vector<float>& of, std::size_t row, std::size_t cols) {
  return {of.begin() + static_cast<std::ptrdiff_t>(row * cols),
          of.begin() + static_cast<std::ptrdiff_t>((row + 1) * cols)};
}

}  // namespace

TEST_CASE("Every tensor gets its numbers: gradients over layers, filters by both kinds of names, precedence") {
  plan_folder f;
  f.add("base.gguf", layered(1));
  f.add("a.gguf", layered(2));
  f.add("b.gguf", layered(3));
  const merge_plan plan = f.plan(R"(
models:
  - model: a.gguf
    parameters:
      weight: [0, 0.3, 1.2]
      density: [{filter: mlp, value: [0.2, 0.8]}, {filter: attn_q, value: 0.4}, {filter: lm_head, value: 0.9}]
  - model: b.gguf
    parameters: {density: 0.7}
  - model: base.gguf
merge_method: ties
base_model: base.gguf
parameters: {weight: 0.25, density: 0.5, normalize: false, lambda: [1, 2]}
dtype: float16
seed: 9
)")
                              .value();
  CHECK(plan.models.size() == 3);
  CHECK(plan.seed == 9);
  const merge_step& up = step_of(plan, "blk.1.ffn_up.weight");
  CHECK(up.how == find_merge_method("ties"));
  REQUIRE(up.inputs.size() == 2);  // the base is none of them
  CHECK(plan.models[up.inputs[1].model].path() == f.folder / "b.gguf");
  CHECK(plan.models[up.base->model].path() == f.folder / "base.gguf");
  CHECK(up.type == dtype::f16);
  CHECK(step_of(plan, "blk.1.ffn_norm.weight").type == dtype::f32);
  // t = i / (n - 1) over four layers: layer 1 is a third of the way.
  check_numbers(plan, "blk.1.ffn_up.weight", "weight", {0.2, 0.25});
  check_numbers(plan, "blk.0.ffn_up.weight", "weight", {0, 0.25});
  check_numbers(plan, "blk.2.ffn_up.weight", "weight", {0.6, 0.25});
  check_numbers(plan, "blk.3.ffn_up.weight", "weight", {1.2, 0.25});
  check_numbers(plan, "blk.1.ffn_up.weight", "density", {0.4, 0.7});
  check_numbers(plan, "blk.1.attn_q.weight", "density", {0.4, 0.7});
  check_numbers(plan, "blk.1.attn_k.weight", "density", {0.5, 0.7});  // no filter fits: the next level
  check_numbers(plan, "blk.3.attn_k.weight", "lambda", {2});
  check_numbers(plan, "token_embd.weight", "lambda", {1});  // outside layers: the beginning
  check_numbers(plan, "output_norm.weight", "weight", {0, 0.25});
  check_numbers(plan, "blk.0.attn_k.weight", "normalize", {0});
  CHECK(plan.metadata.integer("general.file_type").value() == 1);
}

TEST_CASE("Layers are stacked: numbers of blocks, lists per layer, tensors outside") {
  plan_folder f;
  f.add("a.gguf", layered(1, 3), [](io::metadata& m, auto&) {
    m.set("llama.attention.head_count_kv", std::vector<std::uint32_t>{1, 1, 2});
  });
  f.add("b.gguf", layered(2, 4), [](io::metadata& m, auto&) {
    m.set("llama.attention.head_count_kv", std::vector<std::uint32_t>{4, 5, 6, 7});
  });
  const merge_plan plan = f.plan(R"(
slices:
  - sources: [{model: a.gguf, layer_range: [0, 2]}]
  - sources: [{model: b.gguf, layer_range: [1, 4]}]
  - sources: [{model: a.gguf, layer_range: [2, 3], parameters: {scale: 0.5}}]
merge_method: passthrough
)")
                              .value();
  CHECK(plan.metadata.integer("llama.block_count").value() == 6);
  CHECK(plan.metadata.integers("llama.attention.head_count_kv").value() == std::vector<std::int64_t>{1, 1, 5, 6, 7, 2});
  const auto from = [&](std::string_view name) {
    const merge_step& s = step_of(plan, name);
    return plan.models[s.inputs.at(0).model].path().filename().string() + ":" + s.inputs[0].tensor;
  };
  CHECK(from("blk.1.attn_q.weight") == "a.gguf:blk.1.attn_q.weight");
  CHECK(from("blk.2.attn_q.weight") == "b.gguf:blk.1.attn_q.weight");
  CHECK(from("blk.4.ffn_norm.weight") == "b.gguf:blk.3.ffn_norm.weight");
  CHECK(from("blk.5.attn_q.weight") == "a.gguf:blk.2.attn_q.weight");
  CHECK(from("token_embd.weight") == "a.gguf:token_embd.weight");
  CHECK(from("output_norm.weight") == "a.gguf:output_norm.weight");
  CHECK(step_of(plan, "blk.1.attn_q.weight").how == nullptr);
  CHECK(step_of(plan, "blk.1.attn_q.weight").type == dtype::f32);  // as stored
  check_numbers(plan, "blk.5.attn_q.weight", "scale", {0.5});
  CHECK(plan.steps.size() == 2 + 6 * 9);
  const std::string text =
      f.refusal("slices: [{sources: [{model: a.gguf, layer_range: [1, 4]}]}]\nmerge_method: passthrough\n",
                {"[1, 4]", "3 layers", "a.gguf"});
  (void)f.refusal(
      "slices: [{sources: [{model: a.gguf, layer_range: [0, 2]}, {model: b.gguf, layer_range: [0, 3]}]}]\n"
      "merge_method: linear\nparameters: {weight: 1}\n",
      {"different numbers of layers", "a.gguf", "b.gguf"});
}

TEST_CASE("A head of its own in one model is one in the result") {
  plan_folder f;
  tiny_model untied = layered(2, 1);
  untied.tied = false;
  f.add("tied.gguf", layered(1, 1));
  f.add("untied.gguf", untied);
  const merge_plan plan =
      f.plan("models: [{model: tied.gguf}, {model: untied.gguf}]\nmerge_method: linear\nparameters: {weight: 1}\n")
          .value();
  const merge_step& head = step_of(plan, "output.weight");
  CHECK(head.inputs[0].tensor == "token_embd.weight");
  CHECK(head.inputs[1].tensor == "output.weight");
  const merge_plan alone =
      f.plan("models: [{model: tied.gguf}]\nmerge_method: linear\nparameters: {weight: 1}\n").value();
  CHECK(std::none_of(alone.steps.begin(), alone.steps.end(), [](const auto& s) { return s.name == "output.weight"; }));
}

TEST_CASE("What does not fit is named with its tensor and both files") {
  plan_folder f;
  f.add("a.gguf", layered(1, 2));
  f.add("b.gguf", layered(2, 2));
  tiny_model other = layered(1, 2);
  other.architecture = "qwen3";
  f.add("qwen.gguf", other);
  tiny_model wide = layered(1, 2);
  wide.ffn = 32;
  f.add("wide.gguf", wide);
  f.add("short.gguf", layered(1, 2), [](io::metadata&, auto& tensors) {
    std::erase_if(tensors, [](const tiny_tensor& t) { return t.plan.name == "blk.1.attn_v.weight"; });
  });
  f.add("words.gguf", layered(1, 2), [](io::metadata& m, auto&) {
    auto tokens = m.strings("tokenizer.ggml.tokens").value();
    std::vector<std::string> changed(tokens.begin(), tokens.end());
    changed[270] = "zzz";
    m.set("tokenizer.ggml.tokens", changed);
  });
  const auto pair = [](const std::string& second) {
    return "models: [{model: a.gguf}, {model: " + second + "}]\nmerge_method: linear\nparameters: {weight: 1}\n";
  };
  REQUIRE(f.plan(pair("b.gguf")));
  (void)f.refusal(pair("qwen.gguf"), {"a.gguf", "qwen.gguf", "llama", "qwen3"});
  (void)f.refusal(pair("wide.gguf"), {"blk.0.ffn_gate.weight", "[24, 16]", "[32, 16]", "a.gguf", "wide.gguf"});
  (void)f.refusal(pair("short.gguf"), {"blk.1.attn_v.weight", "a.gguf", "short.gguf"});
  (void)f.refusal("models: [{model: short.gguf}, {model: a.gguf}]\nmerge_method: linear\nparameters: {weight: 1}\n",
                  {"blk.1.attn_v.weight", "a.gguf", "short.gguf"});
  (void)f.refusal(pair("words.gguf"), {"token 270", "'zzz'", "a.gguf", "words.gguf", "union"});
  (void)f.refusal(pair("nowhere.gguf"), {"nowhere.gguf", "none is downloaded"});

  const std::string models = "models: [{model: a.gguf}, {model: b.gguf}]\n";
  (void)f.refusal(models + "merge_method: tise\n", {"'tise'", "did you mean ties?"});
  (void)f.refusal(models + "merge_method: ties\nparameters: {weight: 1}\n", {"ties needs a base_model"});
  (void)f.refusal(models + "merge_method: linear\n", {"linear needs a value of 'weight'", "a.gguf"});
  (void)f.refusal(models + "merge_method: linear\nparameters: {weight: 1, density: 1}\n",
                  {"linear has no parameter 'density'", "weight (per model)", "normalize"});
  (void)f.refusal(models + "merge_method: passthrough\n", {"passthrough takes", "2 are given"});
  const std::string with_base = models + "base_model: a.gguf\n";
  (void)f.refusal(with_base + "merge_method: ties\nparameters: {weight: 1, density: 1.5}\n",
                  {"'density' of ties is 1.5", "from 0 to 1", "b.gguf"});
  (void)f.refusal(with_base + "merge_method: ties\nparameters: {weight: 1, density: much}\n", {"'much'", "no number"});
  (void)f.refusal("models: [{model: a.gguf, parameters: {normalize: true}}]\nmerge_method: linear\n",
                  {"'normalize' of linear is no number of a single model"});
}

TEST_CASE("A union of vocabularies keeps the base's numbers and aligns embeddings by text") {
  plan_folder f;
  constexpr std::size_t cols = 16;
  const auto change = [](io::metadata& m, const std::vector<std::pair<std::size_t, std::string>>& edits) {
    const auto tokens = m.strings("tokenizer.ggml.tokens").value();
    std::vector<std::string> changed(tokens.begin(), tokens.end());
    for (const auto& [at, text] : edits) changed[at] = text;
    m.set("tokenizer.ggml.tokens", changed);
  };
  f.add("base.gguf", layered(1, 1));
  f.add("a.gguf", layered(2, 1), [&](io::metadata& m, auto&) {
    change(m, {{280, "<|a|>"}, {290, "qx"}});
    auto kinds = m.integers("tokenizer.ggml.token_type").value();
    std::vector<std::int32_t> changed(kinds.begin(), kinds.end());
    changed[280] = 3;
    m.set("tokenizer.ggml.token_type", changed);
  });
  f.add("b.gguf", layered(3, 1), [&](io::metadata& m, auto&) { change(m, {{281, "qx"}, {299, "wz"}}); });
  const std::string models =
      "models:\n  - {model: base.gguf, parameters: {weight: 1}}\n  - {model: a.gguf, parameters: {weight: 1}}\n"
      "  - {model: b.gguf, parameters: {weight: 1}}\nmerge_method: linear\nbase_model: base.gguf\n";
  const merge_plan plan = f.plan(models + R"(
tokenizer:
  source: union
  pad_to_multiple_of: 8
  tokens:
    <|new|>: {source: {kind: model_token, model: b.gguf, token: wz}}
    <|none|>: {source: {kind: zero}}
    wz: {source: b.gguf, force: true}
)")
                              .value();
  const io::archive base = io::archive::open(f.folder / "base.gguf").value(),
                    a = io::archive::open(f.folder / "a.gguf").value(),
                    b = io::archive::open(f.folder / "b.gguf").value();
  const auto tokens = plan.metadata.strings("tokenizer.ggml.tokens").value();
  const auto old = base.metadata().strings("tokenizer.ggml.tokens").value();
  REQUIRE(tokens.size() == 312);  // 300, then <|a|>, qx, wz, <|new|>, <|none|>, and padding
  CHECK(std::equal(old.begin(), old.end(), tokens.begin()));
  CHECK(std::vector<std::string>(tokens.begin() + 300, tokens.begin() + 305) ==
        std::vector<std::string>{"<|a|>", "qx", "wz", "<|new|>", "<|none|>"});
  CHECK(plan.metadata.integer("llama.vocab_size").value() == 312);
  const auto kinds = plan.metadata.integers("tokenizer.ggml.token_type").value();
  CHECK(kinds[300] == 3);
  CHECK(kinds[301] == 1);
  CHECK(kinds[303] == 4);
  CHECK(kinds[311] == 5);

  // Text is cut as before, as long as it has none of the new tokens.
  const text::tokenizer before = text::tokenizer::from_metadata(base.metadata()).value(),
                        after = text::tokenizer::from_metadata(plan.metadata).value();
  for (const char* text : {"hello the and", "a banana in the wood", "\xF0\x9F\x99\x82 q x 17", "<|a|>"})
    CHECK(after.encode(text).value() == before.encode(text).value());
  CHECK(after.encode("aqx").value().back() == 301);
  CHECK(after.encode("<|a|>", {.parse_special = true}).value().back() == 300);

  // Rows by their text; a row that a model does not have is the base's, else the mean of those that there are.
  const auto aligned = [&](std::size_t model) { return plan_floats(plan.models[model], "token_embd.weight"); };
  const std::vector<float> of_base = plan_floats(base, "token_embd.weight"), of_a = plan_floats(a, "token_embd.weight"),
                           of_b = plan_floats(b, "token_embd.weight");
  std::vector<float> mean(cols);
  for (std::size_t c = 0; c < cols; ++c) mean[c] = (of_a[290 * cols + c] + of_b[281 * cols + c]) / 2;
  REQUIRE(plan.models[0].path().filename() == "base.gguf");
  for (std::size_t m = 0; m < 3; ++m) {
    const std::vector<float> rows = aligned(m);
    REQUIRE(rows.size() == 312 * cols);
    const std::vector<float>& own = m == 0 ? of_base : m == 1 ? of_a : of_b;
    INFO(m);
    CHECK(plan_row(rows, 265, cols) == plan_row(own, 265, cols));
    CHECK(plan_row(rows, 280, cols) == plan_row(m == 1 ? of_base : own, 280, cols));
    CHECK(plan_row(rows, 300, cols) == plan_row(of_a, 280, cols));
    CHECK(plan_row(rows, 301, cols) == (m == 0   ? mean
                                        : m == 1 ? plan_row(of_a, 290, cols)
                                                 : plan_row(of_b, 281, cols)));
    CHECK(plan_row(rows, 302, cols) == plan_row(of_b, 299, cols));
    CHECK(plan_row(rows, 303, cols) == plan_row(of_b, 299, cols));
    CHECK(plan_row(rows, 304, cols) == std::vector<float>(cols, 0.0F));
    double sum = 0;
    for (std::size_t r = 0; r < 305; ++r) sum += static_cast<double>(rows[r * cols]);
    CHECK(std::abs(static_cast<double>(rows[311 * cols]) - sum / 305) < 1e-6);
  }
  CHECK(step_of(plan, "token_embd.weight").dims == shape{312, 16});
  // The whole merge, with what it says of the new token.
  const io::archive merged = merge_in_memory(plan).value();
  CHECK(plan_row(plan_floats(merged, "token_embd.weight"), 300, cols).size() == cols);

  // The base's vocabulary, and another's.
  const merge_plan kept = f.plan(models + "tokenizer_source: base\n").value();
  CHECK(kept.metadata.strings("tokenizer.ggml.tokens").value().size() == 300);
  CHECK(plan_row(plan_floats(kept.models[1], "token_embd.weight"), 280, cols) == plan_row(of_base, 280, cols));
  const merge_plan theirs = f.plan(models + "tokenizer: {source: b.gguf}\n").value();
  CHECK(theirs.metadata.strings("tokenizer.ggml.tokens").value()[299] == "wz");
  CHECK(plan_row(plan_floats(theirs.models[0], "token_embd.weight"), 299, cols) == plan_row(of_b, 299, cols));
  (void)f.refusal(models + "tokenizer: {source: c.gguf}\n", {"'c.gguf'", "none of the recipe's models"});
  (void)f.refusal(models + "tokenizer: {tokens: {x: {source: {kind: model_token, model: b.gguf, token: nope}}}}\n",
                  {"b.gguf", "'nope'"});
}

TEST_CASE("Embeddings with rows beyond the vocabulary are cut to what all have") {
  plan_folder f;
  tiny_model longer = layered(2, 1);
  longer.vocab = 304;
  f.add("a.gguf", layered(1, 1));
  f.add("longer.gguf", longer);
  const auto rows = [&](const std::string& yaml) {
    const merge_plan plan = f.plan(yaml).value();
    CHECK(plan.metadata.strings("tokenizer.ggml.tokens").value().size() ==
          static_cast<std::size_t>(step_of(plan, "token_embd.weight").dims[0]));
    return step_of(plan, "token_embd.weight").dims[0];
  };
  CHECK(rows("models: [{model: a.gguf}, {model: longer.gguf}]\nmerge_method: linear\nparameters: {weight: 1}\n") ==
        300);
  const std::string based = "merge_method: task_arithmetic\nparameters: {weight: 1}\nmodels: [{model: ";
  CHECK(rows(based + "longer.gguf}]\nbase_model: a.gguf\n") == 300);
  CHECK(rows(based + "a.gguf}]\nbase_model: longer.gguf\n") == 304);
  (void)f.refusal("models: [{model: longer.gguf}, {model: a.gguf}]\nmerge_method: linear\nparameters: {weight: 1}\n",
                  {"300", "304", "a.gguf", "longer.gguf"});
}

TEST_CASE("Hugging Face folders and GGUF files merge with each other") {
  FLYWHEEL_REQUIRE_SHARED(models, "family/models");
  const auto planned = [&](const std::string& base) {
    return plan_merge(
        recipe::parse(
            "models: [{model: legal-full/hf}, {model: tutoring-full/hf}]\nmerge_method: task_arithmetic\nbase_model: " +
            base + "\nparameters: {weight: [{filter: self_attn, value: 0.5}, {value: 0.25}]}\n")
            .value(),
        models);
  };
  const merge_plan a = planned("tiny-base/hf").value(), b = planned("tiny-base/gguf/tiny-base-f16.gguf").value();
  CHECK(a.steps.size() == b.steps.size());
  check_numbers(a, "blk.3.attn_output.weight", "weight", {0.5, 0.5});
  check_numbers(a, "blk.3.ffn_down.weight", "weight", {0.25, 0.25});
  CHECK(plan_floats(a.models[2], "blk.3.attn_k.weight") == plan_floats(b.models[2], "blk.3.attn_k.weight"));
}
