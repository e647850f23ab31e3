// synth: models of random weights that load, run and babble plausibly.
#include <cmath>
#include <string>

#include "cli/process.hpp"
#include "support/temp_folder.hpp"

using namespace flywheel::test;

TEST_CASE("synth writes models of every type that run") {
  const temp_folder folder;
  const std::string path = (folder / "m.gguf").string();
  for (const char* type :
       {"f32",  "f16",    "q8_0",   "q4_0",  "q4_1",    "q5_0",  "q5_1",   "q4_k",    "q5_k",  "q6_k", "q2_k",
        "q3_k", "iq4_nl", "iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"}) {
    INFO(type);
    const json written = flywheel_command({"synth", "tiny", type, path, "--json"}).parsed();
    CHECK(written.at("parameters").get<std::int64_t>() == 1436928);
    const json inspected = flywheel_command({"inspect", path, "--json"}).parsed();
    CHECK(!inspected.contains("problem"));
    // Random weights of the right size: the model is unsure, and says so in finite numbers.
    const json run = flywheel_command({"run", path, "--ids", "1,300,301", "-n", "4", "--greedy", "--ignore-eos",
                                       "--logprobs", "1", "--json"})
                         .parsed();
    REQUIRE(run.at("ids").size() == 4);
    for (const json& step : run.at("logprobs")) {
      CHECK(std::isfinite(step.at("logprob").get<double>()));
      CHECK(step.at("logprob").get<double>() < -0.01);
    }
  }
}

TEST_CASE("synth refuses what it does not know") {
  const temp_folder folder;
  const std::string path = (folder / "m.gguf").string();
  CHECK(flywheel_command({"synth", "no-such-shape", "q4_0", path}).code == 2);
  CHECK(flywheel_command({"synth", "tiny", "no_type", path}).code == 2);
  CHECK(flywheel_command({"synth", "tiny", "q4_0", "/no/such/folder/m.gguf"}).code == 1);
}
