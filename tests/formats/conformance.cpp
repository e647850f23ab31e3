// Every shared case decodes bit for bit; the plain encoders give the reference quantizer's bytes where they claim to.
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "flywheel/formats/formats.hpp"
#include "flywheel/io/archive.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"

namespace fw = flywheel;

namespace {

std::vector<float> floats(const fw::io::archive& file, std::string_view name) {
  const fw::io::tensor_info* tensor = file.find(name);
  REQUIRE(tensor != nullptr);
  REQUIRE(tensor->type == fw::dtype::f32);
  std::vector<float> out(static_cast<std::size_t>(tensor->dims.elements()));
  REQUIRE(file.read(*tensor, 0, std::as_writable_bytes(std::span(out))));
  return out;
}

}  // namespace

TEST_CASE("shared format cases decode bit for bit", "[formats]") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/formats");
  std::ifstream stream(folder / "index.json");
  const auto index = nlohmann::json::parse(stream);
  REQUIRE(index.at("cases").size() >= 20);
  for (const auto& item : index.at("cases")) {
    const auto type = static_cast<fw::dtype>(item.at("type_id").get<std::uint32_t>());
    INFO(item.at("gguf").get<std::string>());
    REQUIRE(fw::to_string(type) == item.at("type").get<std::string>());

    const auto file = fw::io::archive::open(folder / item.at("gguf").get<std::string>());
    REQUIRE(file);
    const fw::io::tensor_info* w = file->find("w");
    REQUIRE(w != nullptr);
    CHECK(w->type == type);
    CHECK(w->bytes == item.at("bytes").get<std::uint64_t>());
    const auto view = file->view(*w);
    REQUIRE(view);

    const auto expected = fw::io::archive::open(folder / item.at("expected").get<std::string>());
    REQUIRE(expected);
    const std::vector<float> dequant = floats(*expected, "dequant");
    std::vector<float> decoded(dequant.size());
    if (fw::formats::find_decoder(type) == nullptr) {
      WARN("skipped: no decoder for " << fw::to_string(type));
      continue;
    }
    const auto done = fw::formats::decode(*view, decoded);
    if (!done) FAIL_CHECK(done.error().to_string());
    if (!done) continue;
    std::size_t different = 0;
    for (std::size_t i = 0; i < decoded.size(); ++i)
      different += std::memcmp(&decoded[i], &dequant[i], sizeof(float)) != 0;
    CHECK(different == 0);

    // Encoders without a search are specified to the bit; the reference quantizer's IQ4_NL searches.
    if (const auto encode = fw::formats::find_encoder(type); encode != nullptr && type != fw::dtype::iq4_nl) {
      const std::vector<float> original = floats(*expected, "original");
      std::vector<std::byte> encoded(static_cast<std::size_t>(w->bytes));
      encode(original.data(), static_cast<std::int64_t>(original.size()), encoded.data());
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < encoded.size(); ++i) wrong += encoded[i] != view->data[i];
      CHECK(wrong == 0);
    }
  }
}
