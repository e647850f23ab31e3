// Vocabularies that contradict themselves are refused, with an error that says what is wrong.
#include <limits>

#include "flywheel/io/archive.hpp"
#include "support/data.hpp"
#include "vocabularies.hpp"

using namespace flywheel;
using test::strings;

namespace {

void refused(const io::metadata& m, errc code, std::string_view where) {
  const auto made = text::tokenizer::from_metadata(m);
  INFO(where << ": " << (made ? "was accepted" : made.error().to_string()));
  REQUIRE_FALSE(made.has_value());
  CHECK(made.error().code == code);
  CHECK(made.error().where.find(where) != std::string::npos);
  CHECK(made.error().message.size() > 10);
}

io::metadata with(io::metadata m, const std::string& key, io::value v) {
  m.set("tokenizer.ggml." + key, std::move(v));
  return m;
}
io::metadata without(io::metadata m, const std::string& key) {
  REQUIRE(m.erase("tokenizer.ggml." + key));
  return m;
}

}  // namespace

TEST_CASE("missing and unknown parts of a vocabulary", "[text][malformed]") {
  refused({}, errc::not_found, "tokenizer.ggml.model");
  refused(with(test::spm_metadata(), "model", "none"), errc::not_found, "tokenizer.ggml.model");
  refused(with(test::spm_metadata(), "model", "rwkv"), errc::unsupported, "tokenizer.ggml.model");
  refused(with(test::spm_metadata(), "model", std::uint32_t{3}), errc::malformed, "tokenizer.ggml.model");
  refused(without(test::spm_metadata(), "tokens"), errc::not_found, "tokens");
  refused(without(test::bpe_metadata(), "merges"), errc::not_found, "merges");
  refused(without(test::unigram_metadata(), "scores"), errc::not_found, "scores");
  refused(with(test::bpe_metadata(), "pre", "of-the-future"), errc::unsupported, "tokenizer.ggml.pre");
  refused(with(test::bpe_metadata(), "pre", true), errc::malformed, "tokenizer.ggml.pre");
  const auto unknown = text::tokenizer::from_metadata(with(test::bpe_metadata(), "pre", "of-the-future"));
  CHECK(unknown.error().message.find("of-the-future") != std::string::npos);
}

TEST_CASE("a missing pre-tokenizer means the default rule", "[text][malformed]") {
  const std::string text = "it's 12345 <b>";
  const auto expected = test::make(test::bpe_metadata("default")).encode(text).value();
  CHECK(test::make(without(test::bpe_metadata(), "pre")).encode(text).value() == expected);
  CHECK(test::make(with(test::bpe_metadata(), "pre", "")).encode(text).value() == expected);
  CHECK(test::make(with(test::spm_metadata(), "pre", "whatever")).encode("a").has_value());  // concerns byte-level only
}

TEST_CASE("lengths, types and numbers of a vocabulary", "[text][malformed]") {
  const auto spm = test::spm_metadata();
  const std::size_t n = spm.strings("tokenizer.ggml.tokens").value().size();
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();

  refused(with(spm, "tokens", strings{}), errc::malformed, "tokens");
  refused(with(spm, "tokens", std::vector<std::int32_t>(n)), errc::malformed, "tokens");
  refused(with(spm, "tokens", "one"), errc::malformed, "tokens");
  refused(with(spm, "scores", std::vector<float>(n - 1)), errc::malformed, "scores");
  refused(with(spm, "scores", std::vector<float>(n + 1)), errc::malformed, "scores");
  refused(with(spm, "scores", strings(n)), errc::malformed, "scores");
  refused(with(spm, "scores", std::vector<float>(n, nan)), errc::malformed, "scores");
  CHECK(text::tokenizer::from_metadata(with(spm, "scores", std::vector<std::int32_t>(n, -3))).has_value());
  CHECK(text::tokenizer::from_metadata(with(spm, "scores", std::vector<float>(n, -infinity))).has_value());
  refused(with(test::unigram_metadata(true), "scores", std::vector<float>(n, -infinity)), errc::malformed, "scores");
  refused(with(spm, "token_type", std::vector<std::int32_t>(n - 1, 1)), errc::malformed, "token_type");
  refused(with(spm, "token_type", std::vector<std::int32_t>(n, 7)), errc::malformed, "token_type");
  refused(with(spm, "token_type", std::vector<std::int32_t>(n, -1)), errc::malformed, "token_type");
  refused(with(spm, "token_type", std::vector<float>(n, 1)), errc::malformed, "token_type");
  CHECK(text::tokenizer::from_metadata(with(spm, "token_type", std::vector<std::int32_t>(n, 0))).has_value());

  strings twice = {"a", "b", "a"};
  refused(with(without(without(spm, "scores"), "token_type"), "tokens", twice), errc::malformed, "tokens");
  strings placeholders = {"a", "", "", "b"};
  const auto t = test::make(with(without(without(spm, "scores"), "token_type"), "tokens", placeholders));
  CHECK(t.piece(1).empty());
  CHECK(t.decode(std::vector<token_id>{0, 1, 3}).value() == "ab");

  for (const char* key : {"bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id", "mask_token_id",
                          "eot_token_id", "separator_token_id", "seperator_token_id", "eom_token_id"}) {
    refused(with(spm, key, static_cast<std::uint32_t>(n)), errc::malformed, key);
    refused(with(spm, key, std::int32_t{-2}), errc::malformed, key);
    refused(with(spm, key, "1"), errc::malformed, key);
    CHECK(text::tokenizer::from_metadata(with(spm, key, static_cast<std::uint32_t>(n - 1))).has_value());
    CHECK(text::tokenizer::from_metadata(
              with(without(with(spm, "add_bos_token", false), "add_bos_token"), key, std::int32_t{-1}))
              .has_value());
  }
  refused(with(spm, "add_bos_token", "yes"), errc::malformed, "add_bos_token");
  refused(with(spm, "add_space_prefix", "yes"), errc::malformed, "add_space_prefix");
  refused(with(test::unigram_metadata(), "remove_extra_whitespaces", "yes"), errc::malformed,
          "remove_extra_whitespaces");
  refused(with(test::bpe_metadata(), "normalizer.nfc", "yes"), errc::malformed, "normalizer.nfc");
}

TEST_CASE("merges must be pairs", "[text][malformed]") {
  for (const char* bad : {"", "abc", " a", "a ", " "}) {
    INFO("'" << bad << "'");
    refused(with(test::bpe_metadata(), "merges", strings{"a b", bad}), errc::malformed, "merges");
  }
  refused(with(test::bpe_metadata(), "merges", std::vector<float>{1}), errc::malformed, "merges");
  refused(with(test::bpe_metadata(), "merges", strings((1 << 22) - 1, "a b")), errc::unsupported, "merges");
  CHECK(test::make(with(test::bpe_metadata(), "merges", strings{})).encode("abc").value().size() == 3);
  CHECK(test::make(with(test::bpe_metadata(), "merges", strings{"t h", "t h", "h e"})).encode("the").value().size() <=
        3);
}

TEST_CASE("damaged vocabularies of the shared set", "[text][malformed]") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/corrupt");
  for (const char* name :
       {"scores_too_short", "token_type_too_short", "tokens_wrong_type", "bos_out_of_range", "merges_without_space"}) {
    const auto file = io::archive::open(folder / (std::string(name) + ".gguf"));
    INFO(name);
    REQUIRE(file.has_value());
    const auto made = text::tokenizer::from_metadata(file->metadata());
    REQUIRE_FALSE(made.has_value());
    CHECK(made.error().code == errc::malformed);
  }
}
