// Searches over merges: what is searched, what comes of it, interruptions, and recipes as YAML.
#include "flywheel/adapt/evolve.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <stop_token>
#include <string>

#include "src/adapt/recipe_numbers.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::adapt;
using namespace flywheel::test;

namespace {

/// Random models of one shape: a.gguf, b.gguf, c.gguf.
void evolve_models(const temp_folder& folder) {
  for (const char* name : {"a", "b", "c"})
    write_tiny_model(folder / (std::string(name) + ".gguf"),
                     {.layers = 4, .seed = static_cast<std::uint64_t>(name[0]), .name = name});
}

recipe evolve_recipe(const std::string& more = {}) {
  return recipe::parse(
             "merge_method: task_arithmetic\nbase_model: a.gguf\nmodels:\n"
             "  - {model: b.gguf, parameters: {weight: 0.5}}\n"
             "  - {model: c.gguf, parameters: {weight: 0.25}}\n" +
             more)
      .value();
}

std::vector<scored_text> evolve_texts() {
  std::string text;
  for (int i = 0; i < 40; ++i) text += "the quick brown fox " + std::to_string(i * i) + " jumps\n";
  return {{"fox", text, 2}, {"numbers", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20", 1}};
}

evolve_options evolve_quickly() {
  evolve_options o;
  o.objective = objective::perplexity;
  o.generations = 4;
  o.population = 5;
  o.groups = 2;
  o.windows = 2;
  o.ctx = 32;
  return o;
}

}  // namespace

TEST_CASE("Evolve: every group of layers and every model has numbers of its own", "[evolve]") {
  const temp_folder folder;
  evolve_models(folder);
  const recipe given = evolve_recipe();
  const merge_plan plan = plan_merge(given, folder.path()).value();
  evolve_options o = evolve_quickly();
  const auto plain = recipe_numbers::find(given, plan, o).value();
  // 2 models x (2 groups and the rest), each from its own number
  CHECK(plain.start() == std::vector<double>{0.5, 0.5, 0.5, 0.25, 0.25, 0.25});
  CHECK(plain.lower()[0] == -0.5);
  CHECK(plain.upper()[5] == 1.25);
  o.parts = true;
  o.parameters = {{"weight", 0, 1}, {"lambda", 0.5, 2}};
  const auto parts = recipe_numbers::find(given, plan, o).value();
  REQUIRE(parts.start().size() == 3 * 7);  // (2 groups x 3 parts and the rest) x (2 models and lambda)
  CHECK(parts.lower()[0] == 0);
  CHECK(parts.upper()[20] == 2);
  std::vector<double> numbers;
  for (std::size_t i = 0; i < 21; ++i) numbers.push_back(0.5 + static_cast<double>(i) / 100);
  const recipe changed = recipe::parse(parts.with(numbers).text).value();
  std::set<double> weights;
  const merge_plan made = plan_merge(changed, folder.path()).value();
  for (const merge_step& s : made.steps) {
    INFO(s.name);
    // By group: norms, feed-forward, attention; then the rest.
    const bool layer = s.name.starts_with("blk."), late = layer && s.name[4] >= '2';
    const bool norm = s.name.find("_norm") != std::string::npos, ffn = s.name.find("ffn_") != std::string::npos;
    const std::size_t part = !layer ? 6 : (late ? 3U : 0U) + (norm ? 0U : ffn ? 1U : 2U);
    REQUIRE(s.parameters.size() >= 4);
    CHECK(s.parameters[0] == numbers[part]);
    CHECK(s.parameters[1] == numbers[7 + part]);
    CHECK(std::count(s.parameters.begin() + 2, s.parameters.end(), numbers[14 + part]) == 1);
    weights.insert(s.parameters[0]);
  }
  CHECK(weights.size() == 7);
}

TEST_CASE("Evolve: slices have numbers of their own", "[evolve]") {
  const temp_folder folder;
  evolve_models(folder);
  const recipe given = recipe::parse(
                           "merge_method: linear\nslices:\n"
                           "  - sources:\n"
                           "      - {model: a.gguf, layer_range: [0, 3], parameters: {weight: 1}}\n"
                           "      - {model: b.gguf, layer_range: [1, 4], parameters: {weight: 2}}\n"
                           "  - sources:\n"
                           "      - {model: c.gguf, layer_range: [2, 4], parameters: {weight: 3}}\n")
                           .value();
  const auto numbers = recipe_numbers::find(given, plan_merge(given, folder.path()).value(), evolve_quickly()).value();
  CHECK(numbers.start() == std::vector<double>{1, 2, 3});
  const recipe changed = recipe::parse(numbers.with(std::vector<double>{0.5, 0.25, 2}).text).value();
  const merge_plan made = plan_merge(changed, folder.path()).value();
  for (const merge_step& s : made.steps) {
    INFO(s.name);
    const bool second = s.name.starts_with("output") || s.name.starts_with("blk.3.") || s.name.starts_with("blk.4.");
    REQUIRE(s.parameters.size() >= 2);
    CHECK(s.parameters[0] == (second ? 2 : 0.5));
  }
}

TEST_CASE("Evolve finds a better recipe, which is what its YAML says", "[evolve]") {
  const temp_folder folder;
  evolve_models(folder);
  const recipe given = evolve_recipe();
  const auto texts = evolve_texts();
  const evolve_options o = evolve_quickly();
  const evolution found = evolve(given, folder.path(), texts, o).value();
  REQUIRE(found.history.size() == 20);
  CHECK(found.numbers == 6);
  CHECK(found.parents.size() == 3);
  CHECK(found.parents[0].name == "a.gguf");
  CHECK(found.best_found.value < found.start.value - 1e-4);
  for (const evaluation& e : found.history) CHECK(e.value >= found.best_found.value);
  CHECK(found.best_found.value == Approx((2 * found.best_found.nll[0] + found.best_found.nll[1]) / 3));
  const auto again =
      evaluate_recipes(std::vector{recipe::parse(found.best.text).value()}, folder.path(), texts, evolve_quickly())
          .value();
  REQUIRE(again.size() == 4);
  CHECK(again[0].nll == found.parents[0].nll);
  CHECK(again[3].nll == found.best_found.nll);
}

TEST_CASE("Evolve: gains are counted between the base and the best parent", "[evolve]") {
  const evaluation base{"base", {3, 2, 1}, 0}, first{"first", {2, 2.5, 1}, 0}, second{"second", {2.5, 1.5, 1.5}, 0};
  const std::vector<evaluation> parents = {base, first, second};
  const std::vector<double> gains = gains_kept(parents, {"", {2.25, 2.25, 1}, 0});
  CHECK(gains[0] == 0.75);
  CHECK(gains[1] == -0.5);
  CHECK(std::isnan(gains[2]));

  const temp_folder folder;
  evolve_models(folder);
  auto texts = evolve_texts();
  texts.pop_back();
  evolve_options o = evolve_quickly();
  const auto all = evaluate_recipes(std::vector{evolve_recipe()}, folder.path(), texts, o).value();
  const auto by_value = [](const evaluation& a, const evaluation& b) { return a.value < b.value; };
  const auto [best, worst] = std::minmax_element(all.begin(), all.end() - 1, by_value);
  REQUIRE(worst->value - best->value > 1e-3);
  const auto with_base = [](const std::string& name) {
    std::string models;
    for (const char* other : {"a.gguf", "b.gguf", "c.gguf"})
      if (other != name) models += std::string("  - {model: ") + other + ", parameters: {weight: 0.3}}\n";
    return recipe::parse("merge_method: task_arithmetic\nbase_model: " + name + "\nmodels:\n" + models).value();
  };
  o.generations = 2;
  for (const objective what : {objective::least_gain, objective::mean_gain}) {
    o.objective = what;
    const evolution found = evolve(with_base(worst->name), folder.path(), texts, o).value();
    CHECK(found.best_found.value == -gains_kept(found.parents, found.best_found)[0]);
    const auto refused = evolve(with_base(best->name), folder.path(), texts, o);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == errc::invalid_argument);
    CHECK(refused.error().where == "fox");
  }
}

TEST_CASE("Evolve: an interrupted search ends as if it had never stopped", "[evolve]") {
  const temp_folder folder;
  evolve_models(folder);
  const recipe given = evolve_recipe();
  const auto texts = evolve_texts();
  const evolution whole = evolve(given, folder.path(), texts, evolve_quickly()).value();
  evolve_options o = evolve_quickly();
  o.state = folder / "out.evolve.json";
  std::stop_source stop;
  o.control.stop = stop.get_token();
  o.control.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view) {
    CHECK(total == 20);
    if (done == 12) stop.request_stop();
  };
  CHECK(evolve(given, folder.path(), texts, o).error().code == errc::cancelled);
  o.control = {};
  std::size_t generations = 0;
  o.each = [&](std::size_t g, std::span<const evaluation> candidates) {
    CHECK(g == generations++);
    CHECK(candidates.size() == 5);
  };
  const evolution second = evolve(given, folder.path(), texts, o).value();
  CHECK(second.resumed);
  CHECK(generations == 4);
  REQUIRE(second.history.size() == whole.history.size());
  for (std::size_t i = 0; i < whole.history.size(); ++i) CHECK(second.history[i].nll == whole.history[i].nll);
  CHECK(second.best.text == whole.best.text);
  CHECK(second.start.nll == whole.start.nll);
  CHECK(second.parents[2].name == whole.parents[2].name);
  // Further than before; but not with another question, nor from a damaged state.
  o.each = {};
  o.generations = 5;
  CHECK(evolve(given, folder.path(), texts, o).value().history.size() == 25);
  o.seed = 2;
  CHECK(evolve(given, folder.path(), texts, o).error().code == errc::invalid_argument);
  o.seed = 1;
  std::ofstream(folder / "out.evolve.json") << "{\"flywheel_evolve\": 1";
  CHECK(evolve(given, folder.path(), texts, o).error().code == errc::malformed);
}

TEST_CASE("Evolve says what is wrong", "[evolve]") {
  const temp_folder folder;
  evolve_models(folder);
  const recipe given = evolve_recipe();
  auto texts = evolve_texts();
  evolve_options o = evolve_quickly();
  o.parameters = {{"densty"}};
  CHECK(evolve(given, folder.path(), texts, o).error().where == "densty");
  o.parameters = {{"weight", 2, 1}};
  CHECK(evolve(given, folder.path(), texts, o).error().where == "weight");
  o.parameters = {};
  CHECK(evolve(given, folder.path(), {}, o).error().where == "texts");
  texts[1].weight = -1;
  CHECK(evolve(given, folder.path(), texts, o).error().where == "numbers");
  texts[1] = {"empty", "", 1};
  CHECK(evolve(given, folder.path(), texts, o).error().where == "empty");
}

TEST_CASE("Recipes are written as they are read", "[evolve]") {
  const char* given[] = {
      "merge_method: ties\nbase_model: a\nmodels:\n  - model: b+lora\n    parameters: {weight: [0, 0.1, 1], density: "
      "0.5}\n"
      "  - {model: 'c d', parameters: {weight: [{filter: mlp, value: 0.3}, {value: [1, 2]}]}}\n"
      "parameters: {normalize: true}\ndtype: float16\nname: \"x\\\"y\"\nseed: 7\n"
      "tokenizer:\n  source: union\n  pad_to_multiple_of: 8\n  tokens:\n    <a>: {source: b, force: true}\n"
      "    <b>: {source: {kind: zero}}\n    <c>: {source: {kind: model_token, model: c, token_id: 3}}\n",
      "slices:\n  - sources: [{model: {path: 'a+b'}, layer_range: [0, 2]}]\n    merge_method: passthrough\n"
      "  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n    merge_method: slerp\n"
      "    base_model: a\n    parameters: {t: 0.5}\nchat_template: \"{{ 'a\\n' }}\"\n",
      "modules:\n  text:\n    models: [{model: a}]\n    merge_method: linear\n    parameters: {weight: 1}\n"};
  for (const char* yaml : given) {
    const std::string written = to_yaml(recipe::parse(yaml).value());
    INFO(written);
    const auto read = recipe::parse(written);
    REQUIRE(read);
    CHECK(to_yaml(*read) == written);
  }
  const std::string text = to_yaml(recipe::parse(given[0]).value());
  for (const char* part : {"[0, 0.1, 1]", "filter: \"mlp\"", "\"b+lora\"", "\"c d\"", "token_id: 3", "seed: 7"})
    CHECK(text.find(part) != std::string::npos);
  // Paths follow the recipe to another folder.
  const temp_folder folder;
  evolve_models(folder);
  std::filesystem::create_directories(folder / "sub");
  const std::string moved = to_yaml(evolve_recipe(), folder.path(), folder / "sub");
  CHECK(moved.find("\"../b.gguf\"") != std::string::npos);
  // Another method keeps the parameters it knows.
  const recipe other = with_method(recipe::parse(given[0]).value(), "linear").value();
  CHECK(other.text.find("density") == std::string::npos);
  CHECK(other.text.find("normalize") != std::string::npos);
  CHECK(with_method(other, "nothing").error().code == errc::invalid_argument);
}
