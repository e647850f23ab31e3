// Every case of the shared tokenizer conformance set, and the tokenization of the shared model family.
#include <fstream>
#include <nlohmann/json.hpp>

#include "flywheel/io/archive.hpp"
#include "flywheel/text/tokenizer.hpp"
#include "support/data.hpp"

namespace {

using namespace flywheel;
using nlohmann::json;

json read_json(const std::filesystem::path& path) {
  std::ifstream in(path);
  return json::parse(in);
}

text::tokenizer load(const std::filesystem::path& gguf) {
  auto file = io::archive::open(gguf);
  INFO(gguf.string() << ": " << (file ? "" : file.error().to_string()));
  REQUIRE(file.has_value());
  auto made = text::tokenizer::from_metadata(file->metadata());
  INFO((made ? "" : made.error().to_string()));
  REQUIRE(made.has_value());
  return *made;
}

std::string base64(const std::string& text) {
  std::string out;
  unsigned bits = 0, count = 0;
  for (const char c : text) {
    const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const std::size_t digit = digits.find(c);
    if (digit == std::string::npos) break;
    bits = bits << 6 | static_cast<unsigned>(digit);
    count += 6;
    if (count >= 8) out.push_back(static_cast<char>(bits >> (count -= 8) & 0xFF));
  }
  return out;
}

std::string through_decoder(const text::tokenizer& t, const std::vector<token_id>& ids) {
  text::decoder d(t);
  std::string out;
  for (const token_id id : ids) out += d.push(id).value();
  return out + d.flush();
}

void check_set(const std::filesystem::path& file) {
  const json set = read_json(file);
  const std::string name = file.stem().string();
  const text::tokenizer t = load(file.parent_path() / set["vocabulary"].get<std::string>());

  json cases = set["cases"];
  for (const json& c : set.value("published", json::array()))
    if (c.value("confirmed_by_engines", false)) cases.push_back(c);
  CHECK(cases.size() > 50);
  for (const json& c : cases) {
    const std::string text =
        c.contains("text") ? c["text"].get<std::string>() : base64(c["bytes_b64"].get<std::string>());
    const auto expected = c["ids"].get<std::vector<token_id>>();
    const auto ids = t.encode(text, {.add_special = c["add_special"], .parse_special = c["parse_special"]}).value();
    INFO(name << ": " << c.dump());
    CHECK(ids == expected);
    const std::string decoded = t.decode(expected).value();
    if (c.contains("detokenized")) CHECK(decoded == c["detokenized"].get<std::string>());
    if (c.contains("detokenized_b64")) CHECK(decoded == base64(c["detokenized_b64"].get<std::string>()));
    if (!c.contains("detokenized_b64")) CHECK(through_decoder(t, expected) == decoded);
  }
}

}  // namespace

TEST_CASE("shared conformance cases", "[text][conformance]") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/tokenizers");
  std::size_t sets = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".json") continue;
    check_set(entry.path());
    ++sets;
  }
  CHECK(sets >= 6);
}

TEST_CASE("tokenization of the shared model family", "[text][conformance]") {
  FLYWHEEL_REQUIRE_SHARED(golden, "family/golden/tokenization.json");
  FLYWHEEL_REQUIRE_SHARED(folder, "family/models/tiny-base/gguf");
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".gguf") continue;
    const text::tokenizer t = load(entry.path());
    const json set = read_json(golden);
    CHECK(t.special().bos == set["bos"].get<token_id>());
    CHECK(t.special().eos == set["eos"].get<token_id>());
    CHECK(t.special().unknown == set["unk"].get<token_id>());
    for (const json& c : set["cases"]) {
      INFO(c.dump());
      const auto ids = t.encode(c["text"].get<std::string>()).value();
      CHECK(ids == c["ids"].get<std::vector<token_id>>());
      std::vector<std::string> pieces;
      for (const token_id id : ids) pieces.emplace_back(t.piece(id));
      CHECK(pieces == c["pieces"].get<std::vector<std::string>>());
      CHECK(t.decode(ids).value() == c["decoded"].get<std::string>());
    }
  }
}
