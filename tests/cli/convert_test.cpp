// convert, and commands on a Hugging Face folder.
#include <filesystem>
#include <string>

#include "cli/process.hpp"
#include "support/data.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

TEST_CASE("convert writes GGUF files in other types, and says what it wrote") {
  const temp_folder folder;
  const std::string from = (folder / "a.gguf").string(), to = (folder / "b.gguf").string();
  write_tiny_model(from);
  const auto written = flywheel_command({"convert", from, to, "--type", "q8_0", "--json"}).parsed();
  CHECK(written.at("architecture") == "llama");
  CHECK(written.at("changed").get<int>() > 0);
  CHECK(written.at("file_bytes").get<std::uintmax_t>() == std::filesystem::file_size(to));
  CHECK(!flywheel_command({"inspect", to, "--json"}).parsed().contains("problem"));
  CHECK(flywheel_command({"convert", from, to, "--type", "no_type"}).code == 2);
  CHECK(flywheel_command({"convert", from, to, "--type", "i32"}).code == 2);
  check_failure(flywheel_command({"convert", folder.path().string(), to}), 1, "config.json");
}

TEST_CASE("A Hugging Face folder and the file that convert makes of it predict alike") {
  FLYWHEEL_REQUIRE_SHARED(hf, "family/models/tiny-base/hf");
  const temp_folder folder;
  const std::string file = (folder / "base.gguf").string();
  REQUIRE(flywheel_command({"convert", hf.string(), file}).code == 0);
  const auto run = [](const std::string& model) {
    return flywheel_command({"run", model, "--ids", "1,300,301,302", "-n", "12", "--greedy", "--ignore-eos",
                             "--logprobs", "1", "--json"})
        .parsed();
  };
  const auto a = run(hf.string()), b = run(file);
  CHECK(a.at("ids") == b.at("ids"));
  CHECK(a.at("logprobs") == b.at("logprobs"));
  CHECK(flywheel_command({"inspect", hf.string(), "--json"}).parsed().at("container") == "hugging_face");
}
