// evolve and moe, as a user runs them.
#include <filesystem>
#include <string>

#include "cli/process.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

struct evolve_family {
  temp_folder folder;
  [[nodiscard]] std::string path(const std::string& name) const { return (folder / name).string(); }
  evolve_family() {
    for (const char* name : {"a", "b", "c"})
      write_tiny_model(folder / (std::string(name) + ".gguf"),
                       {.layers = 2, .weights = dtype::f16, .seed = static_cast<std::uint64_t>(name[0]), .name = name});
    std::string words;
    for (int i = 0; i < 40; ++i) words += "the quick brown fox jumps over dog " + std::to_string(i) + "\n";
    spill(folder / "text.txt", words);
    spill(folder / "recipe.yaml",
          "merge_method: task_arithmetic\nbase_model: a.gguf\nmodels:\n"
          "  - {model: b.gguf, parameters: {weight: 0.5}}\n  - {model: c.gguf, parameters: {weight: 0.5}}\n");
    spill(folder / "moe.yaml",
          "base_model: a.gguf\nexperts:\n  - {source_model: b.gguf, positive_prompts: [aaaa bbbb]}\n"
          "  - {source_model: c.gguf, positive_prompts: ['1234 5678']}\n");
    std::filesystem::create_directories(folder / "out");
  }
};

}  // namespace

TEST_CASE("evolve writes a model, its recipe, its lineage and a drawing, and goes on where it was") {
  const evolve_family f;
  const std::string out = f.path("out/best.gguf"), plot = f.path("search.svg");
  const arguments command = {"evolve",
                             f.path("recipe.yaml"),
                             out,
                             "--text",
                             f.path("text.txt") + ":2",
                             "--test",
                             f.path("text.txt"),
                             "--plot",
                             plot,
                             "--objective",
                             "perplexity",
                             "--population",
                             "4",
                             "--groups",
                             "1",
                             "--generations",
                             "3",
                             "--ctx",
                             "32",
                             "--windows",
                             "3",
                             "--json"};
  const json j = flywheel_command(command).parsed();
  CHECK(j.at("numbers") == 4);
  CHECK(j.at("history").size() == 12);
  CHECK(j.at("resumed") == false);
  CHECK(j.at("texts")[0].at("weight") == 2);
  CHECK(j.at("best").at("value") <= j.at("start").at("value"));
  CHECK(j.at("finals").size() == 5);
  const std::string svg = slurp(plot);
  CHECK(svg.rfind("<svg", 0) == 0);
  CHECK(svg.find("</svg>") != std::string::npos);
  CHECK(svg.find("evolved") != std::string::npos);
  CHECK(svg.find("nan") == std::string::npos);

  // What was written is the recipe's result.
  CHECK(slurp(f.path("out/best.gguf.yaml")).find("../b.gguf") != std::string::npos);
  const json again =
      flywheel_command({"perplexity", out, "--file", f.path("text.txt"), "--ctx", "32", "--json"}).parsed();
  CHECK(again.at("mean_nll").get<double>() == Approx(j.at("finals")[4].at("nll")[0].get<double>()).epsilon(1e-6));
  CHECK(slurp(out + ".lineage.json").find("task_arithmetic") != std::string::npos);
  CHECK(std::filesystem::exists(out + ".evolve.json"));

  const json second = flywheel_command(command).parsed();
  CHECK(second.at("resumed") == true);
  CHECK(second.at("history") == j.at("history"));
  const finished refused = flywheel_command({"evolve", f.path("recipe.yaml"), out, "--text", f.path("text.txt")});
  CHECK(refused.code == 1);  // the state of another search
  CHECK(refused.err.find("another recipe") != std::string::npos);
  CHECK(flywheel_command({"evolve", f.path("recipe.yaml"), f.path("a.gguf"), "--text", f.path("text.txt")}).code == 2);
  const finished table =
      flywheel_command({"evolve", f.path("recipe.yaml"), f.path("out/other.gguf"), "--text", f.path("text.txt"),
                        "--objective", "perplexity", "--methods", "linear,task_arithmetic", "--generations", "2",
                        "--population", "2", "--groups", "1", "--ctx", "32", "--windows", "2"});
  INFO(table.err);
  CHECK(table.code == 0);
  CHECK(table.out.find("linear: ") != std::string::npos);
  CHECK(table.out.find("best so far") != std::string::npos);
}

TEST_CASE("moe writes a mixture that runs and says who its parents are") {
  const evolve_family f;
  const std::string out = f.path("out/mix.gguf");
  const json j = flywheel_command({"moe", f.path("moe.yaml"), out, "--json"}).parsed();
  CHECK(j.at("experts") == 2);
  CHECK(slurp(out + ".lineage.json").find("\"expert\"") != std::string::npos);
  CHECK(flywheel_command({"perplexity", out, "--file", f.path("text.txt"), "--ctx", "32", "--json"}).code == 0);
  CHECK(flywheel_command({"moe", f.path("moe.yaml"), f.path("b.gguf")}).code == 2);
}
