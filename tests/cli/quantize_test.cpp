// flywheel quantize, as a user runs it.
#include <filesystem>
#include <string>

#include "process.hpp"
#include "tiny_file.hpp"

namespace {

using namespace flywheel::test;

const tiny_model wide{.hidden = 256, .layers = 2, .ffn = 512, .weights = flywheel::dtype::f16};

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
  refused({"--target-bpw", "-4"}, 2, "--target-bpw: '-4' is not a positive number");
  refused({"--max-kl", "nan"}, 2, "--max-kl: 'nan' is not a positive number");
  refused({"--target-size", "many"}, 2, "--target-size");
  refused({"--target-size", "-5M"}, 2, "--target-size");
  refused({"--target-bpw", "4"}, 2, "--calibration");
  refused({"--type", "Q2_K_S"}, 2, "--imatrix");
  refused({"--type", "Q4_0", "--tensor-type", "attn"}, 2, "--tensor-type");
  refused({"--type", "Q4_0", "--method", "magic"}, 2, "--method");
  refused({"--type", "Q4_0", "--imatrix", "nowhere.gguf"}, 1, "nowhere.gguf");
  check_failure(flywheel_command({"quantize", tiny.path, tiny.path, "--type", "Q4_0"}), 2, "OUT");
  check_failure(flywheel_command({"quantize", tiny.path, (tiny.folder / "no/out.gguf").string(), "--type", "Q4_0"}), 1,
                "folder");
  REQUIRE(flywheel_command({"quantize", tiny.path, out, "--type", "Q8_0"}).code == 0);
  check_failure(flywheel_command({"quantize", out, out + "2", "--type", "Q4_0"}), 2, "--allow-requantize");
}

std::string calibration_words() {
  std::string words;
  for (int i = 0; i < 400; ++i) words += i % 3 == 0 ? "hello the world " : "and the other thing in here ";
  return words;
}

TEST_CASE("quantize never writes over what it reads") {
  const tiny_file tiny(wide);
  const std::string text = (tiny.folder / "text.txt").string(), matrix = (tiny.folder / "i.gguf").string();
  spill(text, calibration_words());
  REQUIRE(flywheel_command({"imatrix", tiny.path, text, "-o", matrix, "--chunk", "32", "--chunks", "4"}).code == 0);
  const std::string link = (tiny.folder / "link.gguf").string();
  std::filesystem::create_hard_link(matrix, link);
  for (const std::string& out : {text, matrix, link}) {
    const std::string before = slurp(out);
    check_failure(
        flywheel_command({"quantize", tiny.path, out, "--type", "Q4_0", "--imatrix", matrix, "--calibration", text}), 2,
        "OUT");
    CHECK(slurp(out) == before);
  }
}

TEST_CASE("quantize says what will fail before it runs the model") {
  const tiny_file tiny(wide);
  const std::string out = (tiny.folder / "out.gguf").string(), text = (tiny.folder / "text.txt").string(),
                    empty = (tiny.folder / "empty.txt").string();
  spill(text, calibration_words());
  spill(empty, "");
  // The text would fail first, were it run: it is too short.
  const std::string brief = (tiny.folder / "brief.txt").string();
  spill(brief, "a");
  const auto refused = [&](const std::string& to, arguments more, int code, const std::string& part) {
    arguments all = {"quantize", tiny.path, to, "--calibration", brief};
    all.insert(all.end(), more.begin(), more.end());
    check_failure(flywheel_command(all), code, part);
  };
  refused(out, {"--type", "Q4_9"}, 2, "--type");
  refused(out, {"--type", "Q4_0", "--tensor-type", "attn_(v=Q8_0"}, 2, "--tensor-type");
  refused(out, {"--target-bpw", "4", "--tensor-type", ".*=I32"}, 2, "--type");
  refused((tiny.folder / "no/out.gguf").string(), {"--type", "Q4_0"}, 1, "folder");
  refused((tiny.folder / "out.safetensors").string(), {"--type", "Q4_K_M"}, 2, "safetensors");
  refused((tiny.folder / "out.safetensors").string(), {"--target-bpw", "4"}, 2, ".gguf");
  check_failure(flywheel_command({"quantize", tiny.path, out, "--type", "Q4_0", "--calibration", empty}), 1,
                "empty.txt");
}

TEST_CASE("quantize says after Ctrl-C that the same command goes on") {
  const tiny_file tiny({.hidden = 1024, .layers = 6, .ffn = 2048, .weights = flywheel::dtype::f16});
  const std::string out = (tiny.folder / "out.gguf").string();
  process running({"quantize", tiny.path, out, "--type", "Q4_K_M", "--method", "greedy", "-t", "1"});
  for (int i = 0; i < 5000 && slurp(out + ".partial.journal").empty(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  running.send(SIGINT);
  const finished f = running.wait();
  CHECK(f.code == 130);
  CHECK(f.out.empty());
  CHECK(f.err.find("the same command goes on") != std::string::npos);
}

TEST_CASE("quantize goes on where it was killed, and ends in the same bytes") {
  // Large enough that the kill comes in the middle.
  const tiny_file tiny({.hidden = 1024, .layers = 6, .ffn = 2048, .weights = flywheel::dtype::f16});
  const std::string out = (tiny.folder / "out.gguf").string(), whole = (tiny.folder / "whole.gguf").string();
  const auto command = [&](const std::string& to) {
    return arguments{"quantize", tiny.path, to, "--type", "Q4_K_M", "--method", "greedy", "-t", "1", "--json"};
  };
  REQUIRE(flywheel_command(command(whole)).code == 0);
  // Again where the run was quicker than the signal.
  for (int attempt = 0; attempt < 5 && !std::filesystem::exists(out + ".partial"); ++attempt) {
    std::filesystem::remove(out);
    const process running(command(out));
    for (int i = 0; i < 2000 && slurp(out + ".partial.journal").size() < 120; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    running.send(SIGKILL);
  }
  REQUIRE(std::filesystem::exists(out + ".partial"));
  CHECK_FALSE(std::filesystem::exists(out));
  CHECK(flywheel_command(command(out)).parsed()["resumed"].get<int>() > 0);
  CHECK(slurp(out) == slurp(whole));
  CHECK_FALSE(std::filesystem::exists(out + ".partial"));
  CHECK_FALSE(std::filesystem::exists(out + ".partial.journal"));
}

}  // namespace
