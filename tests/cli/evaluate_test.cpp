// evaluate and imatrix, as a user runs them.
#include <cmath>
#include <string>
#include <vector>

#include "cli/process.hpp"
#include "cli/tiny_file.hpp"
#include "flywheel/quant/importance.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

/// A model, a rounded copy, and a text.
struct pair_of_models {
  tiny_file base;
  std::string rounded = (base.folder / "q8.gguf").string(), coarse = (base.folder / "q4.gguf").string();
  std::string text = (base.folder / "text.txt").string();
  pair_of_models() {
    std::string words;
    for (int i = 0; i < 60; ++i) words += i % 3 == 0 ? "hello the world " : "and the other thing in here ";
    spill(text, words);
    (void)flywheel_command({"convert", base.path, rounded, "--type", "q8_0", "--json"}).parsed();
    (void)flywheel_command({"convert", base.path, coarse, "--type", "q4_0", "--json"}).parsed();
  }
};

}  // namespace

TEST_CASE("evaluate compares models on texts and draws them") {
  const pair_of_models m;
  const std::string plot = (m.base.folder / "plot.svg").string();
  const json j = flywheel_command({"evaluate", m.rounded, m.coarse, m.base.path, "--baseline", m.base.path, "--text",
                                   m.text, "--text", m.text, "--ctx", "32", "--windows", "4", "--plot", plot, "--json"})
                     .parsed();
  CHECK(j.at("baseline") == m.base.path);
  CHECK(j.at("protocol") == "second-half");
  const json& models = j.at("models");
  REQUIRE(models.size() == 3);
  for (const json& one : models) {
    REQUIRE(one.at("texts").size() == 2);
    const json& text = one.at("texts")[0];
    CHECK(text.at("positions") == 4 * 15);
    CHECK(text.at("kl").at("value") == one.at("texts")[1].at("kl").at("value"));
    CHECK(one.at("kl").at("value").get<double>() == Approx(text.at("kl").at("value").get<double>()));
    CHECK(one.at("bytes") == std::filesystem::file_size(one.at("model").get<std::string>()));
    CHECK(text.at("log_ratio").at("value").get<double>() ==
          Approx(std::log(text.at("perplexity").at("value").get<double>() /
                          text.at("baseline_perplexity").at("value").get<double>()))
              .margin(1e-6));
  }
  const auto kl = [&](std::size_t i) { return models[i].at("kl").at("value").get<double>(); };
  CHECK(kl(2) < 1e-8);
  CHECK(kl(0) > kl(2));
  CHECK(kl(1) > kl(0));
  CHECK(models[1].at("bits_per_weight") < models[0].at("bits_per_weight"));

  const std::string svg = slurp(plot);
  CHECK(svg.rfind("<svg", 0) == 0);
  CHECK(svg.find("</svg>") != std::string::npos);
  for (const char* name : {">q8<", ">q4<", ">tiny<", "polyline", "mean KL divergence"})
    CHECK(svg.find(name) != std::string::npos);

  const finished readable =
      flywheel_command({"evaluate", m.coarse, "--baseline", m.base.path, "--text", m.text, "--ctx", "32"});
  CHECK(readable.code == 0);
  CHECK(readable.out.find("mean KL") != std::string::npos);
  CHECK(readable.out.find("q4.gguf") != std::string::npos);

  // The same perplexity as the command for one model says.
  const json whole = flywheel_command({"evaluate", m.coarse, "--baseline", m.base.path, "--text", m.text, "--ctx", "32",
                                       "--all-tokens", "--json"})
                         .parsed();
  const json alone = flywheel_command({"perplexity", m.coarse, "--file", m.text, "--ctx", "32", "--json"}).parsed();
  CHECK(whole.at("models")[0].at("texts")[0].at("perplexity").at("value").get<double>() ==
        Approx(alone.at("perplexity").get<double>()).epsilon(1e-6));
}

TEST_CASE("evaluate has a row for every type of cache and every way to round activations") {
  const pair_of_models m;
  const json j = flywheel_command({"evaluate", m.base.path, m.rounded, "--baseline",    m.base.path, "--text",
                                   m.text,     "--ctx",     "32",      "--windows",     "4",         "--kv-type",
                                   "f16",      "--kv-type", "f32",     "--activations", "block",     "--activations",
                                   "power",    "--json"})
                     .parsed();
  const json& rows = j.at("models");
  REQUIRE(rows.size() == 8);
  const auto kl = [&](std::size_t i) { return rows[i].at("kl").at("value").get<double>(); };
  CHECK(rows[2].at("kv_type") == "f32");
  CHECK(rows[3].at("activations") == "power");
  CHECK(kl(0) < 1e-8);  // f32 weights round no activations
  CHECK(kl(1) < 1e-8);
  CHECK(kl(2) != kl(0));  // the baseline's cache is f16
  CHECK(kl(4) != kl(5));
  check_failure(
      flywheel_command({"evaluate", m.rounded, "--baseline", m.base.path, "--text", m.text, "--kv-type", "q3"}), 2,
      "--kv-type");
}

TEST_CASE("evaluate refuses what cannot be compared") {
  const pair_of_models m;
  const tiny_file other({.vocab = 330});
  check_failure(flywheel_command({"evaluate", m.rounded, "--text", m.text}), 2, "--baseline");
  check_failure(flywheel_command({"evaluate", m.rounded, "--baseline", m.base.path}), 2, "--text");
  check_failure(flywheel_command({"evaluate", other.path, "--baseline", m.base.path, "--text", m.text, "--ctx", "32"}),
                1, "330");
  check_failure(flywheel_command({"evaluate", m.rounded, "--baseline", m.base.path, "--text", "/no/such"}), 1,
                "/no/such");
  check_failure(flywheel_command({"evaluate", m.rounded, "--baseline", m.base.path, "--text", "-"}, "hello"), 1,
                "too few");
}

TEST_CASE("evaluate loses nothing to its plot, and runs nothing before all models are there") {
  const pair_of_models m;
  const auto command = [&](const std::string& second, const std::string& plot) {
    return flywheel_command({"evaluate", m.rounded, second, "--baseline", m.base.path, "--text", m.text, "--ctx", "32",
                             "--windows", "1", "--plot", plot});
  };
  for (const std::string& input : {m.rounded, m.base.path, m.text}) {
    const std::string before = slurp(input);
    check_failure(command(m.coarse, input), 2, "--plot");
    CHECK(slurp(input) == before);
  }
  check_failure(command(m.coarse, (m.base.folder / "no/x.svg").string()), 1, "--plot");
  // A missing model is found before the baseline meets the text that it cannot use.
  check_failure(
      flywheel_command({"evaluate", m.rounded, "/no/such.gguf", "--baseline", m.base.path, "--text", "-"}, "a"), 1,
      "/no/such.gguf");
}

TEST_CASE("evaluate has no error of one position") {
  const pair_of_models m;
  const arguments command = {"evaluate", m.coarse, "--baseline", m.base.path, "--text",
                             m.text,     "--ctx",  "4",          "--windows", "1"};
  arguments as_json = command;
  as_json.emplace_back("--json");
  const json text = flywheel_command(as_json).parsed().at("models")[0].at("texts")[0];
  REQUIRE(text.at("positions") == 1);
  for (const char* figure : {"perplexity", "kl", "same_top", "delta_p_rms"})
    CHECK(text.at(figure).at("error").is_null());
  const finished readable = flywheel_command(command);
  CHECK(readable.out.find("± -") != std::string::npos);
  CHECK(readable.out.find("nan") == std::string::npos);
}

TEST_CASE("imatrix collects into a file and shows it") {
  const pair_of_models m;
  const std::string out = (m.base.folder / "i.gguf").string();
  const json made =
      flywheel_command({"imatrix", m.base.path, m.text, "-o", out, "--chunk", "32", "--chunks", "5", "--json"})
          .parsed();
  CHECK(made.at("chunks") == 5);
  CHECK(made.at("tokens") == 160);
  const auto matrix = quant::importance_matrix::read(std::filesystem::path(out)).value();
  CHECK(matrix.entries.size() == made.at("tensors"));
  CHECK(matrix.datasets == std::vector<std::string>{m.text});
  CHECK(matrix.entries.at("blk.0.ffn_down.weight").counts == std::vector<float>{160});

  const json shown = flywheel_command({"imatrix", "--show", out, "--json"}).parsed();
  CHECK(shown.at("tensors").size() == matrix.entries.size());
  for (const json& t : shown.at("tensors")) {
    const auto share = t.at("top_1_percent").get<double>();
    CHECK(share > 0);
    CHECK(share <= 1);
  }
  const finished readable = flywheel_command({"imatrix", "--show", out});
  CHECK(readable.code == 0);
  CHECK(readable.out.find("blk.0.attn_q.weight") != std::string::npos);
  CHECK(readable.out.find("5 chunks of 32 tokens") != std::string::npos);

  const std::string nothing = (m.base.folder / "none.gguf").string();
  check_failure(flywheel_command({"imatrix", m.base.path, "-", "-o", nothing}, "short"), 1, "too few");
  CHECK(!std::filesystem::exists(nothing));
  check_failure(flywheel_command({"imatrix", m.base.path, m.text}), 2, "--out");
  for (const std::string& input : {m.base.path, m.text}) {
    const std::string before = slurp(input);
    check_failure(flywheel_command({"imatrix", m.base.path, m.text, "-o", input, "--chunk", "32"}), 2, "--out");
    CHECK(slurp(input) == before);
  }
  // The folder is missed before the text is found to be too short.
  check_failure(flywheel_command({"imatrix", m.base.path, "-", "-o", (m.base.folder / "no/x").string()}, "short"), 1,
                "no/x");
  check_failure(flywheel_command({"imatrix", m.base.path, "-o", nothing}), 2, "TEXT");
  check_failure(flywheel_command({"imatrix", "--show", m.base.path}), 1, "no importance matrix");
}
