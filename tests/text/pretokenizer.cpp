#include "src/text/pretokenizer.hpp"

#include <fstream>
#include <nlohmann/json.hpp>

#include "support/data.hpp"
#include "vocabularies.hpp"

using namespace flywheel;
using test::strings;

namespace {

strings split(const text::pretokenizer& p, std::string_view text) {
  strings words;
  text::regex_matcher matcher;
  const auto done = p.split(text, matcher, [&](std::string_view w) { words.emplace_back(w); });
  REQUIRE(done.has_value());
  return words;
}

strings split(std::string_view rule, std::string_view text) {
  const text::pre_rule* found = text::find_pre_rule(rule);
  REQUIRE(found != nullptr);
  return split(text::pretokenizer::make(*found).value(), text);
}

/// Both ways must cut alike, and lose nothing.
void compare(const text::pre_rule& rule, const text::pretokenizer& fast, const text::pretokenizer& slow,
             const std::string& text) {
  const strings a = split(fast, text), b = split(slow, text);
  std::string whole;
  for (const std::string& w : b) {
    whole += w;
    if (w.empty()) FAIL(rule.name << ": an empty word");
  }
  if (a != b || whole != text) {
    INFO(rule.name << ": " << text);
    CHECK(a == b);
    CHECK(whole == text);
  }
}

}  // namespace

TEST_CASE("words of the common rules", "[text][pretokenizer]") {
  const std::string text = "Hello  World's 12345 it'LL  \n\n x+=camelCase;\n";
  CHECK(split("gpt-2", text) == strings{"Hello", " ", " World", "'s", " 12345", " it", "'", "LL", "  \n\n", " x",
                                        "+=", "camelCase", ";", "\n"});
  CHECK(split("llama-bpe", text) == strings{"Hello", " ", " World", "'s", " ", "123", "45", " it", "'LL", "  \n\n",
                                            " x", "+=", "camelCase", ";\n"});
  CHECK(split("qwen2", text) == strings{"Hello", " ", " World", "'s", " ", "1", "2", "3", "4", "5", " it", "'LL",
                                        "  \n\n", " x", "+=", "camelCase", ";\n"});
  CHECK(split("gpt-4o", text) ==
        strings{"Hello", " ", " World's", " ", "123", "45", " it'LL", "  \n\n", " x", "+=", "camel", "Case", ";\n"});
  CHECK(split("tekken", text) == strings{"Hello", " ", " World", "'s", " ", "1", "2", "3", "4", "5", " it", "'LL",
                                         "  \n\n", " x", "+=", "camel", "Case", ";\n"});
  CHECK(split("starcoder", text) == strings{"Hello", " ", " World", "'s", " ", "1", "2", "3", "4", "5", " it", "'",
                                            "LL", "  \n\n", " x", "+=", "camelCase", ";", "\n"});
  CHECK(split("falcon", text) == strings{"Hello", " ", " World", "'", "s", " ", "123", "45", " it", "'", "LL", "  \n\n",
                                         " x", "+=", "camelCase", ";", "\n"});
  CHECK(split("deepseek-coder", text) == strings{"Hello", " ",  " World", "'",         "s", " ",  "1",  "2",
                                                 "3",     "4",  "5",      " it",       "'", "LL", "  ", "\n",
                                                 "\n",    " x", "+=",     "camelCase", ";", "\n"});
  CHECK(split("deepseek-v3", text) == strings{"Hello", " ", " World", "'s", " ", "123", "45", " it", "'LL", "  \n\n",
                                              " x", "+=", "camelCase", ";\n"});
  CHECK(split("default", "a<b 1234567 c") == strings{"a", "<", "b", " ", "123", "456", "7", " c"});
  CHECK(split("deepseek-llm", "Hi  there, 中文abc 1234  ") ==
        strings{"Hi", " ", " there", ",", " ", "中文", "abc", " ", "1234", "  "});
  CHECK(split("bloom", "one, two") == strings{"one", ",", " two"});
  CHECK(split("qwen35", "e\u0301a\u0301 x") == strings{"e\u0301a\u0301", " x"});
  CHECK(split("qwen2", "e\u0301a\u0301 x") == strings{"e", "\u0301a", "\u0301", " x"});
}

TEST_CASE("the hand-written matchers agree with the published expressions", "[text][pretokenizer]") {
  std::vector<std::string> texts = {"",
                                    " ",
                                    "'",
                                    "''",
                                    "'s",
                                    "'ſ",
                                    "  ",
                                    "\n",
                                    " \n",
                                    "\n ",
                                    "a",
                                    "aé",
                                    "A",
                                    "Aé",
                                    "1",
                                    "1234",
                                    "1\u0663",
                                    "!",
                                    "! ",
                                    " !",
                                    " !é",
                                    "!\r\n/é",
                                    "'Ré",
                                    "x'",
                                    "x'l",
                                    "x'lL",
                                    "X'S",
                                    "\t\tx",
                                    " \u00a0x",
                                    "\u00a0",
                                    test::sample_text()};
  if (const auto file = test::shared_data("conformance/tokenizers/gpt-2.json"); !file.empty()) {
    std::ifstream in(file);
    const auto set = nlohmann::json::parse(in);
    for (const char* list : {"cases", "published"})
      for (const auto& c : set[list])
        if (c.contains("text")) texts.push_back(c["text"]);
  }
  test::random_numbers random(1);
  for (int i = 0; i < 3000; ++i) texts.push_back(test::random_text(random, 1 + random.below(12), i % 3 == 0));
  for (int i = 0; i < 20; ++i) texts.push_back(test::random_text(random, 500, i % 2 == 0));
  // Every pair and many triples of ASCII characters: the matchers decide by at most three.
  for (unsigned a = 1; a < 128; ++a)
    for (unsigned b = 1; b < 128; ++b)
      texts.push_back({static_cast<char>(a), static_cast<char>(b), static_cast<char>(1 + random.below(127))});

  std::vector<text::ascii_scan> compared;
  for (const text::pre_rule& rule : text::pre_rules()) {
    const text::pre_expression* last = nullptr;
    for (const text::pre_expression* e : rule.steps) last = e == nullptr ? last : e;
    if (last->scan == nullptr) continue;
    const auto fast = text::pretokenizer::make(rule), slow = text::pretokenizer::make(rule, false);
    REQUIRE(fast.has_value());
    REQUIRE(slow.has_value());
    // A matcher is compared in full under the first rule that uses it alone, and briefly under the others.
    const bool seen = std::find(compared.begin(), compared.end(), last->scan) != compared.end();
    for (std::size_t i = 0; i < texts.size(); ++i)
      if (!seen || i % 40 == 0) compare(rule, *fast, *slow, texts[i]);
    if (rule.steps[1] == nullptr) compared.push_back(last->scan);
  }
  CHECK(compared.size() >= 5);
}

TEST_CASE("every rule compiles and keeps the text", "[text][pretokenizer]") {
  test::random_numbers random(2);
  for (const text::pre_rule& rule : text::pre_rules()) {
    INFO(rule.name);
    CHECK(text::find_pre_rule(rule.name) == &rule);  // names are unique
    const auto made = text::pretokenizer::make(rule);
    INFO((made ? "" : made.error().to_string()));
    REQUIRE(made.has_value());
    for (int i = 0; i < 30; ++i) {
      const std::string text = test::random_text(random, random.below(40));
      std::string whole;
      for (const std::string& w : split(*made, text)) whole += w;
      CHECK(whole == text);
    }
  }
  CHECK(text::find_pre_rule("no such rule") == nullptr);
}

TEST_CASE("an expression that needs too much gives an error, not a hang", "[text][pretokenizer]") {
  const auto wild = text::regex::compile("(a*)*(a|aa)+$");
  REQUIRE(wild.has_value());
  text::regex_matcher matcher;
  const std::string text = std::string(5000, 'a') + "b";
  const auto found = matcher.search(*wild, text, 0);
  REQUIRE_FALSE(found.has_value());
  CHECK(found.error().code == errc::invalid_argument);
  CHECK(matcher.search(*wild, "aaa", 0).value().matched);  // the matcher is still good
  CHECK_FALSE(text::regex::compile("(").has_value());
}
