#include "src/core/checksum.hpp"

#include <string_view>

#include "support/catch.hpp"

namespace flywheel::detail {
namespace {

std::uint64_t of(std::string_view text) {
  checksum sum;
  sum.add(std::as_bytes(std::span(text.data(), text.size())));
  return sum.value();
}

TEST_CASE("the checksum is XXH64", "[checksum]") {
  CHECK(of("") == 0xEF46DB3751D8E999ULL);
  CHECK(of("a") == 0xD24EC4F1A98C6E5BULL);
  CHECK(of("abc") == 0x44BC2CF5AD770999ULL);
  CHECK(of("Nobody inspects the spammish repetition") == 0xFBCEA83C8A378BF1ULL);
}

TEST_CASE("pieces of any size give the same checksum", "[checksum]") {
  std::string text;
  for (int i = 0; i < 300; ++i) text.push_back(static_cast<char>(i * 37));
  const std::uint64_t whole = of(text);
  for (std::size_t step = 1; step < 80; ++step) {
    checksum sum;
    for (std::size_t at = 0; at < text.size(); at += step) {
      const std::string_view piece = std::string_view(text).substr(at, step);
      sum.add(std::as_bytes(std::span(piece.data(), piece.size())));
    }
    CHECK(sum.value() == whole);
  }
}

}  // namespace
}  // namespace flywheel::detail
