// Texts made to be slow, and machines without memory. Nothing here measures time: what is quadratic would not end.
#include <algorithm>
#include <thread>

#include "flywheel/detail/utf8.hpp"
#include "src/text/pretokenizer.hpp"
#include "support/catch.hpp"
#include "support/failing_new.hpp"
#include "vocabularies.hpp"

using namespace flywheel;
using test::strings;

namespace {

std::string repeat(std::string_view part, std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += part;
  return text;
}

strings long_texts(std::size_t bytes) {
  strings texts;
  for (const char* part : {"a",      "A",    " ",      "\n",      "\t ",   "1",      "'",  "'s", "!", ".",  "aA",
                           "a ",     "ab",   "\u0301", "e\u0301", "中",    "\u3000", "ſ",  "é",  "É", "😀", "\u200d",
                           "\u2581", "\xFF", "\xE2",   "<",       "<tool", "<s",     "a1", "한", "अ", "\r"})
    texts.push_back(repeat(part, bytes));
  texts.push_back(repeat(" ", bytes) + "x");
  texts.push_back(repeat("\u3000", bytes) + "x");
  texts.push_back("x" + repeat("\n ", bytes) + "x");
  texts.push_back(std::string(bytes, '\0'));
  return texts;
}

/// What a text becomes when it is encoded and decoded.
std::string expected(const std::string& kind, std::string text) {
  if (kind == "bpe") return detail::repair_utf8(text);
  for (std::size_t at = 0; (at = text.find("\u2581", at)) != std::string::npos;) text.replace(at, 3, " ");
  return text;
}

}  // namespace

TEST_CASE("a megabyte without a break is encoded and decoded", "[text][hostile]") {
  strings texts = long_texts(1 << 16);
  for (const char* part : {"a", " ", "\n", "!", "中", "\xFF"}) texts.push_back(repeat(part, 1 << 20));
  for (const char* kind : {"spm", "bpe", "unigram", "wordpiece"}) {
    const std::string k = kind;
    const auto t = test::make(k == "spm"       ? test::spm_metadata()
                              : k == "bpe"     ? test::bpe_metadata("llama-bpe")
                              : k == "unigram" ? test::unigram_metadata(true)
                                               : test::wordpiece_metadata());
    for (const std::string& text : texts) {
      const auto ids = t.encode(text, {.parse_special = true});
      INFO(kind << ": " << text.substr(0, 12));
      REQUIRE(ids.has_value());
      if (k == "bpe" || (k == "spm" && detail::is_utf8(text))) CHECK(t.decode(*ids).value() == expected(k, text));
    }
  }
}

TEST_CASE("no rule hangs or fails on long runs", "[text][hostile]") {
  const strings texts = long_texts(1 << 16);
  std::vector<const text::pre_rule*> seen;
  for (const text::pre_rule& rule : text::pre_rules()) {
    if (std::any_of(seen.begin(), seen.end(), [&](const text::pre_rule* other) { return other->steps == rule.steps; }))
      continue;
    seen.push_back(&rule);
    const auto rules = text::pretokenizer::make(rule);
    REQUIRE(rules.has_value());
    text::regex_matcher matcher;
    for (const std::string& text : texts) {
      const std::string valid = detail::repair_utf8(text);
      std::size_t bytes = 0;
      const auto done = rules->split(valid, matcher, [&](std::string_view w) { bytes += w.size(); });
      INFO(rule.name << ": " << text.substr(0, 12) << (done ? "" : done.error().to_string()));
      REQUIRE(done.has_value());
      CHECK(bytes == valid.size());
    }
  }
}

TEST_CASE("spellings of a thousand characters", "[text][hostile]") {
  auto v = test::sentencepiece_vocabulary();
  v.add(std::string(900, '<'), test::control);
  v.add(std::string(100'000, '<'), test::control);  // too long to be looked for
  v.add("<" + std::string(1000, 'a'), test::normal, -1);
  for (const char* kind : {"llama", "t5"}) {
    auto m = v.build(kind);
    m.set("tokenizer.ggml.unknown_token_id", std::uint32_t{0});
    const auto t = test::make(m);
    const auto ids = t.encode(repeat("<", 300'000), {.parse_special = true}).value();
    CHECK(std::count(ids.begin(), ids.end(), t.find(std::string(900, '<'))) == 300'000 / 900);
  }
}

TEST_CASE("text beyond the limit is refused", "[text][hostile]") {
  const auto t = test::make(test::spm_metadata());
  const std::string_view huge("", std::size_t{1} << 40);  // never read
  CHECK(t.encode(huge).error().code == errc::invalid_argument);
}

TEST_CASE("running out of memory is an error", "[text][memory]") {
  std::vector<std::pair<const char*, io::metadata>> all = {{"spm", test::spm_metadata()},
                                                           {"bpe", test::bpe_metadata("starcoder", 60)},
                                                           {"unigram", test::unigram_metadata()},
                                                           {"wordpiece", test::wordpiece_metadata()}};
  all[1].second.set("tokenizer.ggml.normalizer.nfc", true);
  const std::string text = test::sample_text() + "<tool> \xFF and 👩\u200d🚀" + std::string(100, 'q');
  for (const auto& [name, m] : all) {
    INFO(name);
    bool finished = false;
    for (std::uint64_t n = 0; !finished; ++n) {
      test::fail_allocations failing(n);
      const auto made = text::tokenizer::from_metadata(m);
      finished = !failing.failed();
      if (made.has_value() != finished || (!made && made.error().code != errc::out_of_memory))
        FAIL(name << ": allocation " << n << ": " << (made ? "no error" : made.error().to_string()));
    }
    const auto t = test::make(m);
    const auto whole = t.encode(text, {.add_special = true, .parse_special = true}).value();
    finished = false;
    for (std::uint64_t n = 0; !finished; ++n) {
      test::fail_allocations failing(n);
      const auto ids = t.encode(text, {.add_special = true, .parse_special = true});
      finished = !failing.failed();
      if (ids.has_value() != finished || (ids && *ids != whole) || (!ids && ids.error().code != errc::out_of_memory))
        FAIL(name << ": allocation " << n << " of encode");
    }
    const auto decoded = t.decode(whole).value();
    finished = false;
    for (std::uint64_t n = 0; !finished; ++n) {
      test::fail_allocations failing(n);
      const auto again = t.decode(whole);
      finished = !failing.failed();
      if (again.has_value() != finished || (again && *again != decoded) ||
          (!again && again.error().code != errc::out_of_memory))
        FAIL(name << ": allocation " << n << " of decode");
    }
  }
}

TEST_CASE("a decoder that ran out of memory can go on", "[text][memory]") {
  auto v = test::bpe_vocabulary(0);
  const token_id word = v.add(std::string(200, 'w'));
  const auto t = test::make(v.build("gpt2"));
  text::decoder d(t);
  (void)d.push(t.find(test::spell("\xE2"))).value();  // half a character waits
  bool finished = false;
  for (std::uint64_t n = 0; !finished; ++n) {
    auto more = result<std::string>(std::string());
    {
      test::fail_allocations failing(n);
      more = d.push(word);
      finished = !failing.failed();
    }
    REQUIRE(more.has_value() == finished);
    if (finished) CHECK(*more == "\uFFFD" + std::string(200, 'w'));
  }
}

TEST_CASE("threads share a tokenizer", "[text]") {
  for (const io::metadata& m : {test::spm_metadata(), test::bpe_metadata("deepseek-coder"), test::unigram_metadata(),
                                test::wordpiece_metadata()}) {
    const auto t = test::make(m);
    const auto expected = t.encode(test::sample_text()).value();
    std::vector<std::thread> threads;
    std::vector<int> wrong(4);
    for (std::size_t i = 0; i < wrong.size(); ++i)
      threads.emplace_back([&, i] {
        for (int k = 0; k < 20; ++k) wrong[i] += t.encode(test::sample_text()).value() != expected;
      });
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == std::vector<int>(4));
  }
}
