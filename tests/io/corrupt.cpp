// The shared malformed files: whatever is wrong with the container is refused on opening.
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "flywheel/io/archive.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"

TEST_CASE("shared malformed files", "[io]") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/corrupt");
  // Well-formed containers: these faults show when a tokenizer or a model is built.
  const std::set<std::string> later = {
      "head_count_missing.gguf", "head_count_0.gguf",           "heads_do_not_divide.gguf", "head_count_negative.gguf",
      "block_count_0.gguf",      "embedding_length_wrong.gguf", "embedding_length_0.gguf",  "rms_eps_nan.gguf",
      "rope_dim_too_large.gguf", "rope_dim_odd.gguf",           "scores_too_short.gguf",    "token_type_too_short.gguf",
      "tokens_wrong_type.gguf",  "bos_out_of_range.gguf",       "merges_without_space.gguf"};
  std::ifstream notes(folder / "notes.jsonl");
  std::size_t refused = 0;
  for (std::string line; std::getline(notes, line);) {
    const auto note = nlohmann::json::parse(line);
    const auto name = note.at("file").get<std::string>();
    INFO(name << ": " << note.at("wrong").get<std::string>());
    const auto opened = flywheel::io::archive::open(folder / name);
    if (note.at("expect") == "ok" || later.contains(name)) {
      CHECK(opened.has_value());
      continue;
    }
    REQUIRE_FALSE(opened);
    ++refused;
    INFO(opened.error().to_string());
    CHECK(opened.error().where.find(name) != std::string::npos);
    CHECK_FALSE(opened.error().message.empty());
    CHECK((opened.error().code == flywheel::errc::malformed || opened.error().code == flywheel::errc::unsupported));
  }
  CHECK(refused == 44);
}
