// flywheel quantize, as a user runs it.
#include <filesystem>

#include "process.hpp"
#include "tiny_file.hpp"

namespace {

using namespace flywheel::test;

constexpr tiny_model wide{.hidden = 256, .layers = 2, .ffn = 512, .weights = flywheel::dtype::f16};

TEST_CASE("quantize writes a file that runs, and says what it holds") {
  const tiny_file tiny(wide);
  const std::string out = (tiny.folder / "out.gguf").string();
  const json made =
      flywheel_command({"quantize", tiny.path, out, "--type", "Q4_K_M", "--tensor-type", "attn_k=q8_0", "--json"})
          .parsed();
  CHECK(made["bits_per_weight"].get<double>() < 7);
  CHECK(made["file_bytes"] == std::filesystem::file_size(out));
  for (const json& t : made["tensors"]) {
    if (t["name"] == "blk.1.attn_k.weight") CHECK(t["to"] == "Q8_0");
    if (t["name"] == "blk.1.ffn_up.weight") CHECK(t["to"] == "Q4_K");
    if (t["name"] == "output_norm.weight") CHECK(t["to"] == "F32");
  }
  CHECK(flywheel_command({"run", out, "-p", "hello", "--max-tokens", "2", "--greedy"}).code == 0);
  const finished text = flywheel_command({"quantize", tiny.path, out, "--type", "q8_0", "--dry-run"});
  CHECK(text.code == 0);
  CHECK(text.out.find("bits per weight; nothing was written") != std::string::npos);
}

TEST_CASE("quantize refuses nonsense with the option's name") {
  const tiny_file tiny(wide);
  const std::string out = (tiny.folder / "out.gguf").string();
  const auto refused = [&](arguments more, int code, const std::string& part) {
    arguments all = {"quantize", tiny.path, out};
    all.insert(all.end(), more.begin(), more.end());
    check_failure(flywheel_command(all), code, part);
    CHECK_FALSE(std::filesystem::exists(out));
  };
  refused({"--type", "q4_9"}, 2, "--type");
  refused({}, 2, "--type");
  refused({"--type", "Q4_0", "--target-bpw", "4"}, 2, "--t");
  refused({"--target-bpw", "-4"}, 2, "--target-bpw");
  refused({"--target-size", "many"}, 2, "--target-size");
  refused({"--target-size", "-5M"}, 2, "--target-size");
  refused({"--target-bpw", "4"}, 2, "--calibration");
  refused({"--type", "Q2_K_S"}, 2, "--imatrix");
  refused({"--type", "Q4_0", "--tensor-type", "attn"}, 2, "--tensor-type");
  refused({"--type", "Q4_0", "--method", "magic"}, 2, "--method");
  refused({"--type", "Q4_0", "--imatrix", "nowhere.gguf"}, 1, "nowhere.gguf");
  check_failure(flywheel_command({"quantize", tiny.path, tiny.path, "--type", "Q4_0"}), 1, "itself");
  check_failure(flywheel_command({"quantize", tiny.path, (tiny.folder / "no/out.gguf").string(), "--type", "Q4_0"}), 1,
                "folder");
  REQUIRE(flywheel_command({"quantize", tiny.path, out, "--type", "Q8_0"}).code == 0);
  check_failure(flywheel_command({"quantize", out, out + "2", "--type", "Q4_0"}), 2, "--allow-requantize");
}

TEST_CASE("quantize goes on where it was killed, and ends in the same bytes") {
  // Large enough that the kill comes in the middle.
  const tiny_file tiny({.hidden = 1024, .layers = 6, .ffn = 2048, .weights = flywheel::dtype::f16});
  const std::string out = (tiny.folder / "out.gguf").string(), whole = (tiny.folder / "whole.gguf").string();
  const auto command = [&](const std::string& to) {
    return arguments{"quantize", tiny.path, to, "--type", "Q4_K_M", "-t", "1", "--json"};
  };
  REQUIRE(flywheel_command(command(whole)).code == 0);
  {
    const process running(command(out));
    for (int i = 0; i < 2000 && slurp(out + ".partial.journal").size() < 120; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    running.send(SIGKILL);
  }
  if (!std::filesystem::exists(out)) {  // else it was quicker than the signal
    CHECK(std::filesystem::exists(out + ".partial"));
    CHECK(flywheel_command(command(out)).parsed()["resumed"].get<int>() > 0);
  }
  CHECK(slurp(out) == slurp(whole));
  CHECK_FALSE(std::filesystem::exists(out + ".partial"));
  CHECK_FALSE(std::filesystem::exists(out + ".partial.journal"));
}

}  // namespace
