// Recipes: mergekit's YAML as values, and documents that are none.
#include "flywheel/adapt/recipe.hpp"

#include <chrono>
#include <string>

#include "support/catch.hpp"

using namespace flywheel;
using namespace flywheel::adapt;

namespace {

std::vector<double> recipe_values(const settings& of, const std::string& name, std::size_t choice = 0) {
  return of.at(name).choices.at(choice).values;
}

/// The message of a document that must be refused.
std::string recipe_refusal(const std::string& yaml, errc code = errc::malformed) {
  const auto start = std::chrono::steady_clock::now();
  const auto read = recipe::parse(yaml, "r.yml");
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
  INFO(yaml.substr(0, 300));
  REQUIRE(!read);
  CHECK(read.error().code == code);
  CHECK(read.error().where == "r.yml");
  return read.error().message;
}

bool recipe_has(const std::string& text, const std::string& part) {
  INFO(text);
  CHECK(text.find(part) != std::string::npos);
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("Models with numbers, gradients and filters") {
  const recipe r = recipe::parse(R"(
models:
  - model: legal            # a comment
    parameters:
      density: [1, 0.7, .1]
      weight: +1.5
  - model: tutoring+adapter
    parameters:
      weight:
        - filter: mlp
          value: [0, 1e-1]
        - filter: "*"
          value: 0.25
  - model: {model: {path: "a+b"}, lora: {path: other}}
merge_method: ties
base_model: {path: base}
parameters: {normalize: yes, int8_mask: true, rescale_norm: l1}
dtype: float32
out_dtype: torch.bfloat16
tokenizer:
  pad_to_multiple_of: 64
  tokens:
    <|a|>: {source: legal, force: true}
    <|b|>: {source: {kind: zero}}
    <|c|>: {source: {kind: model_token, model: tutoring, token: x}}
    <|d|>: {source: {kind: model_token, model: tutoring, token_id: 7}}
chat_template: auto
name: child
seed: 42
)")
                       .value();
  REQUIRE(r.modules.size() == 1);
  REQUIRE(r.modules[0].slices.size() == 1);
  const auto& sources = r.modules[0].slices[0].sources;
  REQUIRE(sources.size() == 3);
  CHECK(sources[0].model == model_reference{"legal", ""});
  CHECK((sources[0].first == 0 && sources[0].last == 0));
  CHECK(recipe_values(sources[0].parameters, "density") == std::vector<double>{1, 0.7, 0.1});
  CHECK(recipe_values(sources[0].parameters, "weight") == std::vector<double>{1.5});
  CHECK(sources[1].model == model_reference{"tutoring", "adapter"});
  REQUIRE(sources[1].parameters.at("weight").choices.size() == 2);
  CHECK(sources[1].parameters.at("weight").choices[0].filter == "mlp");
  CHECK(recipe_values(sources[1].parameters, "weight") == std::vector<double>{0, 0.1});
  CHECK(sources[1].parameters.at("weight").choices[1].filter.empty());
  CHECK(sources[2].model == model_reference{"a+b", "other"});
  CHECK(r.method == "ties");
  CHECK(r.base == model_reference{"base", ""});
  CHECK(recipe_values(r.parameters, "normalize") == std::vector<double>{1});
  CHECK(r.parameters.at("rescale_norm").choices[0].word == "l1");
  CHECK(r.type == dtype::bf16);
  CHECK(r.tokenizer_source == "union");
  CHECK(r.pad_to_multiple_of == 64);
  REQUIRE(r.tokens.size() == 4);
  CHECK((r.tokens[0].from == model_reference{"legal", ""} && r.tokens[0].force));
  CHECK((r.tokens[1].zero && !r.tokens[1].from));
  CHECK(r.tokens[2].other == "x");
  CHECK(r.tokens[3].id == 7);
  CHECK(r.chat_template == "auto");
  CHECK(r.name == "child");
  CHECK(r.seed == 42);
  CHECK(r.models() == std::vector<model_reference>{
                          {"legal", ""}, {"tutoring", "adapter"}, {"a+b", "other"}, {"base", ""}, {"tutoring", ""}});
}

TEST_CASE("Slices and modules, anchors and merge keys") {
  const recipe r = recipe::parse(R"(
slices:
  - sources:
      - &first
        model: a
        layer_range: [0, 24]
        parameters: {t: 0.5}
      - {<<: *first, model: b}
    parameters: {normalize: false}
    base_model: c
  - sources:
    - model: b
      layer_range: [20, 40]
    residual_weight: null
merge_method: slerp
dtype: float16
tokenizer_source: union
)")
                       .value();
  REQUIRE(r.modules[0].slices.size() == 2);
  const auto& first = r.modules[0].slices[0];
  REQUIRE(first.sources.size() == 2);
  CHECK((first.sources[1].model.path == "b" && first.sources[1].last == 24));
  CHECK(recipe_values(first.sources[1].parameters, "t") == std::vector<double>{0.5});
  CHECK(first.base == model_reference{"c", ""});
  CHECK((r.modules[0].slices[1].sources[0].first == 20 && r.modules[0].slices[1].sources[0].last == 40));
  CHECK(r.tokenizer_source == "union");

  const recipe m = recipe::parse(R"(
modules:
  text_decoder:
    models: [{model: a}, {model: b}]
    parameters: {weight: 1}
merge_method: linear
)")
                       .value();
  CHECK(m.modules[0].name == "text_decoder");
  CHECK(m.modules[0].slices[0].sources.size() == 2);
  CHECK(m.tokenizer_source.empty());
  CHECK(!m.type);
}

TEST_CASE("Recipes that are wrong say where") {
  recipe_has(recipe_refusal(""), "map");
  recipe_has(recipe_refusal("- a\n"), "map");
  recipe_has(recipe_refusal("merge_method: ties\n"), "exactly one of");
  recipe_has(recipe_refusal("models: [{model: a}]\nslices: []\nmerge_method: ties\n"), "exactly one of");
  recipe_has(recipe_refusal("models: [{model: a}]\n"), "'merge_method' is missing");
  recipe_has(recipe_refusal("models: []\nmerge_method: ties\n"), "line 1: 'models' must be a list");
  recipe_has(recipe_refusal("models:\n  - model: a\n    weight: 1\nmerge_method: ties\n", errc::unsupported),
             "line 3: an entry of models has no key 'weight'");
  recipe_has(recipe_refusal("models: [{model: a}]\nmerge_methods: ties\n"), "'merge_method' is missing");
  recipe_has(recipe_refusal("models: [{model: a}]\nmerge_method: ties\nbase_modle: x\n", errc::unsupported),
             "line 3: a recipe has no key 'base_modle'; did you mean 'base_model'?");
  recipe_has(recipe_refusal("models: [{model: a}]\nmerge_method: ties\nparameters:\n  density: 0.5x\n"),
             "line 4: 'density': '0.5x' is no number");
  for (const char* value : {".nan", ".inf", "1e999", "''", "[]", "[1, x]", "[{filter: a}]", "[{value: 1}, 2]"})
    recipe_refusal(std::string("models: [{model: a}]\nmerge_method: ties\nparameters: {w: ") + value + "}\n");
  for (const char* range :
       {"[3, 3]", "[4, 2]", "[0]", "[0, 1, 2]", "[-1, 2]", "7", "[0, 1.5]", "[0, 99999999999999999999]"})
    recipe_has(recipe_refusal(std::string("slices: [{sources: [{model: a, layer_range: ") + range +
                              "}]}]\nmerge_method: passthrough\n"),
               "layer_range");
  recipe_has(recipe_refusal("models: [{model: a+b+c}]\nmerge_method: ties\n"), "more than one '+'");
  recipe_has(recipe_refusal("models: [{model: a, model: b}]\nmerge_method: ties\n"), "'model' is there twice");
  recipe_has(recipe_refusal("models: [{model: a}]\nmerge_method: ties\ndtype: int7\n"), "line 3: 'dtype': 'int7'");
  recipe_has(recipe_refusal("models: [{model: a}]\nmerge_method: ties\ntokenizer_source: base\ntokenizer: {}\n"),
             "both");
  recipe_has(recipe_refusal("models: [{model: {path: a, revision: b}}]\nmerge_method: x\n", errc::unsupported),
             "revision");
  recipe_has(recipe_refusal("models:\n - {model: a\nmerge_method: [\n"), "line ");
}

TEST_CASE("Documents that would never end are refused at once") {
  recipe_has(recipe_refusal("models: &a [*a]\nmerge_method: ties\n"), "line 1: an anchor contains itself");
  recipe_has(recipe_refusal("a: &a {b: {c: *a}}\n"), "contains itself");
  recipe_has(recipe_refusal("&a {<<: *a}\n"), "contains itself");
  std::string bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n";
  for (int i = 1; i < 12; ++i) {
    const std::string before = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + before;
    for (int j = 1; j < 10; ++j) bomb += ", " + before;
    bomb += "]\n";
  }
  recipe_has(recipe_refusal(bomb), "too large");
  for (const char* open : {"[", "{", "- ", "? ", "&a [", "{a: ", "!x "}) {
    std::string deep;
    while (deep.size() < 250'000) deep += open;
    recipe_refusal(deep);
  }
  recipe_has(recipe_refusal(std::string(300'000, 'a')), "256 KiB");
  recipe_has(recipe_refusal(std::string("GGUF\3\0\0\0", 8)), "no text");
  recipe_has(recipe_refusal("\xff\xfe"), "no text");
  std::string wide;
  while (wide.size() < 250'000) wide += "- a\n";
  recipe_refusal(wide);
  std::string keys;
  for (int i = 0; keys.size() < 250'000; ++i) keys += "k" + std::to_string(i) + ": v\n";
  recipe_refusal(keys);
}
