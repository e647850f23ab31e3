#include "src/text/merge.hpp"

#include <map>
#include <string>

#include "support/catch.hpp"
#include "vocabularies.hpp"

using namespace flywheel;
using text::merge;
using text::symbol;

namespace {

/// The definition, on strings: the pair of smallest rank merges, the leftmost first.
std::vector<std::string> textbook(std::vector<std::string> word, const std::map<std::string, std::uint32_t>& ranks) {
  while (true) {
    std::size_t best = word.size();
    std::uint32_t rank = text::no_merge;
    for (std::size_t i = 0; i + 1 < word.size(); ++i)
      if (const auto found = ranks.find(word[i] + word[i + 1]); found != ranks.end() && found->second < rank)
        rank = found->second, best = i;
    if (best == word.size()) return word;
    word[best] += word[best + 1];
    word.erase(word.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

}  // namespace

TEST_CASE("short and long words merge by the definition", "[text][merge]") {
  test::random_numbers random(7);
  for (int round = 0; round < 400; ++round) {
    std::map<std::string, std::uint32_t> ranks;  // also with equal ranks, as scores can be
    for (int i = 0; i < 25; ++i) {
      std::string s;
      for (std::size_t n = 2 + random.below(4); n != 0; --n) s.push_back(static_cast<char>('a' + random.below(3)));
      ranks.emplace(s, static_cast<std::uint32_t>(random.below(20)));
    }
    std::string word;
    for (std::size_t n = 1 + random.below(round < 350 ? 40 : 300); n != 0; --n)
      word.push_back(static_cast<char>('a' + random.below(3)));
    const auto expected = textbook(test::characters(word), ranks);

    for (const std::size_t limit : {std::size_t{0}, std::size_t{100000}}) {
      text::merger work;
      for (std::uint32_t i = 0; i < word.size(); ++i) work.symbols.push_back({0, i, 1});
      work.run(
          [&](const symbol& a, const symbol& b) -> merge {
            REQUIRE(a.start + a.length == b.start);
            const auto found = ranks.find(word.substr(a.start, a.length + b.length));
            return found == ranks.end() ? merge{} : merge{found->second, 1};
          },
          [](const merge& m) { return m.id; }, limit);
      std::vector<std::string> got;
      for (const symbol& s : work.symbols) got.push_back(word.substr(s.start, s.length));
      INFO("limit " << limit << " word " << word);
      CHECK(got == expected);
    }
  }
}
