#include "src/model/stop_matcher.hpp"

#include "support/catch.hpp"
#include "support/tiny_model.hpp"

namespace flywheel::detail {
namespace {

/// Byte by byte: the first stop text that is complete ends the text before it; of several at once, the longest.
std::pair<std::string, bool> expected(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops)
      if (std::string_view(text).substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text, false};
}

TEST_CASE("stop texts end the text however it is cut, and never leak", "[stop_matcher]") {
  test::tiny_random random(3);
  const auto below = [&](int n) { return static_cast<int>(random.uniform() * static_cast<float>(n)); };
  const auto word = [&](int length) {
    std::string s;
    for (int i = 0; i < length; ++i) s.push_back("ab c"[below(4)]);
    return s;
  };
  int found = 0;
  for (int round = 0; round < 20000; ++round) {
    const std::string text = word(below(30));
    std::vector<std::string> stops;
    for (int i = below(4); i > 0; --i) stops.push_back(word(1 + below(5)));
    const auto [want, stopped] = expected(text, stops);
    stop_matcher matcher(stops);
    std::string out;
    bool done = false;
    for (std::size_t at = 0; at < text.size() && !done;) {
      const std::size_t n = std::min(text.size() - at, static_cast<std::size_t>(below(6)));
      done = matcher.push(std::string_view(text).substr(at, n), out);
      at += n;
      // What is out must be part of the result, now and for every continuation.
      REQUIRE(std::string_view(want).starts_with(out));
      for (const std::string& stop : stops) REQUIRE(out.find(stop) == std::string::npos);
    }
    REQUIRE(done == stopped);
    if (!done) out += matcher.held();
    REQUIRE(out == want);
    found += stopped;
  }
  CHECK(found > 5000);
}

TEST_CASE("nothing is held back that cannot become a stop text", "[stop_matcher]") {
  stop_matcher matcher({"###", "END"});
  std::string out;
  CHECK_FALSE(matcher.push("abc#", out));
  CHECK(out == "abc");
  CHECK(matcher.held() == "#");
  CHECK_FALSE(matcher.push("x", out));
  CHECK(out == "abc#x");
  CHECK(matcher.held().empty());
  CHECK_FALSE(matcher.push("##", out));
  CHECK_FALSE(matcher.push("E", out));
  CHECK(out == "abc#x##");
  CHECK(matcher.push("ND and more", out));
  CHECK(out == "abc#x##");
}

}  // namespace
}  // namespace flywheel::detail
