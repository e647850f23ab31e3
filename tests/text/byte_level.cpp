// Byte-level BPE against the textbook algorithm on strings.
#include <map>

#include "flywheel/detail/utf8.hpp"
#include "src/text/pretokenizer.hpp"
#include "support/catch.hpp"
#include "vocabularies.hpp"

using namespace flywheel;
using test::strings;

namespace {

/// Words by the rule, each spelled in the byte alphabet, merged by rank; then ids by spelling.
std::vector<token_id> textbook(const text::tokenizer& t, const strings& merges, std::string_view rule,
                               const std::string& text, bool whole_words) {
  std::map<std::pair<std::string, std::string>, std::size_t> ranks;
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const std::size_t gap = merges[i].find(' ');
    ranks.emplace(std::pair{merges[i].substr(0, gap), merges[i].substr(gap + 1)}, i);
  }
  std::vector<token_id> ids;
  const auto rules = text::pretokenizer::make(*text::find_pre_rule(rule), false).value();
  text::regex_matcher matcher;
  const auto done = rules.split(text, matcher, [&](std::string_view w) {
    const std::string spelled = test::spell(w);
    if (whole_words && t.find(spelled) >= 0) {
      ids.push_back(t.find(spelled));
      return;
    }
    strings word = test::characters(spelled);
    while (true) {
      std::size_t best = word.size(), rank = ranks.size();
      for (std::size_t i = 0; i + 1 < word.size(); ++i)
        if (const auto found = ranks.find({word[i], word[i + 1]}); found != ranks.end() && found->second < rank)
          rank = found->second, best = i;
      if (best == word.size()) break;
      word[best] += word[best + 1];
      word.erase(word.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    for (const std::string& s : word) ids.push_back(t.find(s));
  });
  REQUIRE(done.has_value());
  return ids;
}

}  // namespace

TEST_CASE("byte-level BPE follows the definition", "[text][bpe]") {
  const strings merges = test::bpe_vocabulary().merges;
  for (const char* rule : {"gpt-2", "llama-bpe", "qwen2", "gpt-4o", "starcoder", "falcon", "default"}) {
    const auto t = test::make(test::bpe_metadata(rule));
    CHECK(t.model_name() == "bpe");
    const bool whole_words = rule == std::string_view("llama-bpe");
    test::random_numbers random(3);
    std::vector<std::string> texts = {"", "a", test::sample_text(), test::sample_text() + test::sample_text()};
    for (int i = 0; i < 60; ++i) texts.push_back(test::random_text(random, random.below(60)));
    for (const std::string& text : texts) {
      INFO(rule << ": " << text);
      const auto ids = t.encode(text).value();
      CHECK(ids == textbook(t, merges, rule, text, whole_words));
      CHECK(t.decode(ids).value() == text);
    }
  }
}

TEST_CASE("byte-level BPE: invalid UTF-8 becomes U+FFFD", "[text][bpe]") {
  const auto t = test::make(test::bpe_metadata());
  test::random_numbers random(4);
  for (int i = 0; i < 200; ++i) {
    const std::string bytes = test::random_bytes(random, random.below(40));
    CHECK(t.decode(t.encode(bytes).value()).value() == detail::repair_utf8(bytes));
  }
  CHECK(t.encode("a\xFF\xE2\x82z").value() == t.encode("a\uFFFD\uFFFD\uFFFDz").value());
}

TEST_CASE("byte-level BPE: whole words need no merge path", "[text][bpe]") {
  auto v = test::bpe_vocabulary(0);
  const token_id word = v.add("\u0120zebra");
  auto m = v.build("gpt2");
  m.set("tokenizer.ggml.pre", "llama-bpe");
  CHECK(test::make(m).encode(" zebra").value() == std::vector{word});
  m.set("tokenizer.ggml.pre", "qwen2");
  CHECK(test::make(m).encode(" zebra").value().size() == 6);
}

TEST_CASE("byte-level BPE: merges whose parts are no tokens still lead to tokens", "[text][bpe]") {
  auto v = test::bpe_vocabulary(0);
  const token_id abc = v.add("abc");
  v.merges = {"a b", "ab c", "d e"};  // "ab" and "de" are no tokens
  const auto t = test::make(v.build("gpt2"));
  CHECK(t.encode("abc").value() == std::vector{abc});
  CHECK(t.encode("ab").value() == std::vector{t.find("a"), t.find("b")});
  CHECK(t.encode("de").value() == std::vector{t.find("d"), t.find("e")});
}

TEST_CASE("byte-level BPE: bytes without tokens", "[text][bpe]") {
  test::vocabulary_builder v;
  const token_id a = v.add("a"), unknown = v.add("<unk>", test::unknown);
  auto m = v.build("gpt2");
  CHECK(test::make(m).encode("abba").value() == std::vector{a, a});
  m.set("tokenizer.ggml.unknown_token_id", static_cast<std::uint32_t>(unknown));
  CHECK(test::make(m).encode("aba").value() == std::vector{a, unknown, a});
}

TEST_CASE("byte-level BPE: composition first, where the vocabulary says so", "[text][bpe]") {
  auto m = test::bpe_metadata("qwen2");
  const auto plain = test::make(m);
  m.set("tokenizer.ggml.normalizer.nfc", true);
  const auto composing = test::make(m);
  CHECK(composing.encode("e\u0301 \u1112\u1161\u11ab plain").value() == plain.encode("é 한 plain").value());
  CHECK(plain.encode("e\u0301").value() != plain.encode("é").value());
}

TEST_CASE("byte-level BPE: rendering", "[text][bpe]") {
  test::vocabulary_builder v = test::bpe_vocabulary(0);
  const token_id odd = v.add("\u4e2d\u0120x"), byte = v.add("<0x41>", test::byte_kind),
                 marked = v.add("\u0120q", test::user_defined);
  const auto t = test::make(v.build("gpt2"));
  CHECK(t.decode(std::vector{odd}).value() == "\u4e2d x");  // outside the alphabet: itself
  CHECK(t.decode(std::vector{byte}).value() == "A");
  CHECK(t.decode(std::vector{marked}).value() == "\u0120q");  // spelled as written
}
