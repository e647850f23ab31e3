// tokenize and detokenize.
#include <string>

#include "cli/process.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {
struct vocabulary {
  temp_folder folder;
  std::string path = (folder / "tiny.gguf").string();
  vocabulary() { write_tiny_model(path); }
};
}  // namespace

TEST_CASE("tokenize and detokenize are each other's inverse") {
  const vocabulary v;
  for (const std::string text :
       {"hello the world", "", " two  spaces ", "caf\xC3\xA9\n\ttab \xF0\x9F\x99\x82", "[1, 2]", "-n"}) {
    INFO(text);
    const json ids = flywheel_command({"tokenize", v.path, "--text", text, "--json"}).parsed();
    REQUIRE(ids.size() == 1);
    std::string list;
    for (const json& id : ids.at("ids")) list += (list.empty() ? "" : ",") + id.dump();
    const json back = flywheel_command({"detokenize", v.path, "--ids", list, "--json"}).parsed();
    CHECK(back == json{{"text", text}});
  }
}

TEST_CASE("tokenize merges pieces, adds and parses special tokens on request") {
  const vocabulary v;
  const auto pieces = tiny_pieces(320);
  const json hello = flywheel_command({"tokenize", v.path, "--text", "hello", "--json"}).parsed().at("ids");
  CHECK(hello.size() <= 3);  // merged: it has 5 letters and a space in front
  const json with =
      flywheel_command({"tokenize", v.path, "--text", "hello", "--add-special", "--json"}).parsed().at("ids");
  REQUIRE(with.size() == hello.size() + 1);
  CHECK(with.at(0) == 1);
  const json plain = flywheel_command({"tokenize", v.path, "--text", "</s>", "--json"}).parsed().at("ids");
  const json special =
      flywheel_command({"tokenize", v.path, "--text", "</s>", "--parse-special", "--json"}).parsed().at("ids");
  CHECK(plain.size() > 1);
  CHECK(special.back() == 2);
  const finished readable = flywheel_command({"tokenize", v.path, "--text", "hello"});
  CHECK(readable.code == 0);
  CHECK(readable.out.find(pieces.at(hello.at(0).get<std::size_t>())) != std::string::npos);
  CHECK(readable.out.find(std::to_string(hello.size()) + " tokens, 5 bytes") != std::string::npos);
}

TEST_CASE("tokenize reads files and stdin") {
  const vocabulary v;
  spill(v.folder / "text.txt", "the hello\n");
  const std::string file = (v.folder / "text.txt").string();
  const json from_text = flywheel_command({"tokenize", v.path, "--text", "the hello\n", "--json"}).parsed();
  CHECK(flywheel_command({"tokenize", v.path, "--file", file, "--json"}).parsed() == from_text);
  CHECK(flywheel_command({"tokenize", v.path, "--file", "-", "--json"}, "the hello\n").parsed() == from_text);
  check_failure(flywheel_command({"tokenize", v.path, "--file", (v.folder / "missing.txt").string()}), 1,
                "missing.txt");
  check_failure(flywheel_command({"tokenize", v.path, "--file", v.folder.path().string()}), 1, "folder");
}

TEST_CASE("tokenize answers JSON lines with JSON lines") {
  const vocabulary v;
  const std::string requests =
      "{\"text\": \"hello\", \"add_special\": true}\n"
      "\n"
      "{\"bytes_b64\": \"aGVsbG8=\"}\n"
      "{\"text\": \"</s>\", \"parse_special\": true}\r\n"
      "{\"bytes_b64\": \"/w==\"}";  // one byte 0xFF, no line feed at the end
  const finished f = flywheel_command({"tokenize", v.path, "--jsonl", "-"}, requests);
  REQUIRE(f.code == 0);
  std::vector<json> lines;
  for (std::size_t at = 0; at < f.out.size();) {
    const std::size_t end = f.out.find('\n', at);
    REQUIRE(end != std::string::npos);
    lines.push_back(json::parse(f.out.substr(at, end - at)));
    at = end + 1;
  }
  REQUIRE(lines.size() == 4);
  for (const json& line : lines) CHECK(line.size() == 2);
  CHECK(lines[0].at("ids").at(0) == 1);
  CHECK(lines[0].at("text") == "<s> hello");
  CHECK(lines[1].at("text") == "hello");
  CHECK(lines[1].at("ids").size() + 1 == lines[0].at("ids").size());
  CHECK(lines[2].at("ids").back() == 2);
  CHECK(lines[3].at("ids").back() == 3 + 0xFF);  // the byte token
  CHECK(lines[3].at("text") == "\xEF\xBF\xBD");  // JSON cannot hold the byte
}

TEST_CASE("a bad JSON line is named by its number") {
  const vocabulary v;
  const auto jsonl = [&](const std::string& line) {
    return flywheel_command({"tokenize", v.path, "--jsonl", "-"}, line);
  };
  check_failure(jsonl("\nnot json"), 1, "line 2");
  check_failure(jsonl("[1]"), 1, "line 1");
  check_failure(jsonl("{\"txt\": \"a\"}"), 1, "\"text\"");
  check_failure(jsonl("{\"text\": 5}"), 1, "line 1");
  check_failure(jsonl("{\"text\": \"a\", \"add_special\": 1}"), 1, "add_special");
  check_failure(jsonl("{\"bytes_b64\": \"!!\"}"), 1, "base64");
}

TEST_CASE("detokenize takes lists as people write them") {
  const vocabulary v;
  const std::string ids = std::to_string(3 + 'o') + "," + std::to_string(3 + 'k');
  spill(v.folder / "ids.txt", "[" + std::to_string(3 + 'o') + ",\n " + std::to_string(3 + 'k') + "]\n");
  const json ok = {{"text", "ok"}};
  CHECK(flywheel_command({"detokenize", v.path, "--ids", ids, "--json"}).parsed() == ok);
  CHECK(flywheel_command({"detokenize", v.path, "--ids", "[114, 110]", "--json"}).parsed() == ok);
  CHECK(flywheel_command({"detokenize", v.path, "--ids", "@" + (v.folder / "ids.txt").string(), "--json"}).parsed() ==
        ok);
  CHECK(flywheel_command({"detokenize", v.path, "--ids", "@-", "--json"}, "114 110").parsed() == ok);
  CHECK(flywheel_command({"detokenize", v.path, "--ids", "", "--json"}).parsed() == json{{"text", ""}});
  CHECK(flywheel_command({"detokenize", v.path, "--ids", "1,114", "--json"}).parsed().at("text") == "<s>o");
  CHECK(flywheel_command({"detokenize", v.path, "--ids", "1,114", "--skip-special", "--json"}).parsed().at("text") ==
        "o");
  CHECK(flywheel_command({"detokenize", v.path, "--ids", "114,110"}).out == "ok\n");
  CHECK(flywheel_command({"detokenize", v.path, "--ids", "258", "--json"}).parsed().at("text") == "\xEF\xBF\xBD");
  check_failure(flywheel_command({"detokenize", v.path, "--ids", "100000"}), 1, "100000");
}

TEST_CASE("a file without a vocabulary says so") {
  temp_folder folder;
  const std::string path = (folder / "bare.gguf").string();
  write_tiny_model(path, {.vocabulary = false});
  check_failure(flywheel_command({"tokenize", path, "--text", "a"}), 1, "bare.gguf");
  check_failure(flywheel_command({"detokenize", path, "--ids", "1"}), 1, "bare.gguf");
}
