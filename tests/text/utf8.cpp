#include "flywheel/detail/utf8.hpp"

#include "support/catch.hpp"

using namespace flywheel;

TEST_CASE("every code point survives", "[text][utf8]") {
  std::string bytes;
  for (std::uint32_t code = 0; code < 0x110000; ++code) {
    bytes.clear();
    detail::append_utf8(bytes, code);
    const auto back = detail::decode_utf8(bytes);
    const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
    if (surrogate ? back.length != 0 : back.code != code || back.length != bytes.size()) FAIL("code point " << code);
    for (std::size_t cut = 1; cut < bytes.size(); ++cut)
      if (detail::is_utf8_beginning(std::string_view(bytes).substr(0, cut)) == surrogate && !(surrogate && cut == 1))
        FAIL("beginning of code point " << code << " cut at " << cut);
  }
}

TEST_CASE("what is not UTF-8 is refused", "[text][utf8]") {
  for (const char* bad : {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xC2", "\xC2 ", "\xE0\x80\x80", "\xE0\x9F\xBF",
                          "\xED\xA0\x80", "\xE2\x82", "\xE2\x28\xA1", "\xF0\x80\x80\x80", "\xF0\x8F\xBF\xBF",
                          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xFE", "\xF0\x9F\x98", "\xF0\x28\x8C\xBC"}) {
    INFO(bad);
    CHECK(detail::utf8_length(bad) == 0);
    CHECK_FALSE(detail::is_utf8(bad));
    CHECK_FALSE(detail::is_utf8(std::string("good text before") + bad));
    CHECK(detail::is_utf8(detail::repair_utf8(bad)));
  }
  CHECK(detail::repair_utf8("a\xFFz\xE2\x82") == "a\uFFFDz\uFFFD\uFFFD");
  CHECK(detail::repair_utf8("") == "");
  CHECK(detail::utf8_valid_prefix("abcdefghijé\xFF") == 12);
  for (const char* not_beginning : {"", "a", "\x80", "\xC0", "\xC1", "\xE0\x9F", "\xED\xA0", "\xF0\x8F", "\xF4\x90",
                                    "\xF5", "\xFF", "\xC2\x80", "\xE2\x28", "\xF0\x9F\x28"}) {
    INFO(not_beginning);
    CHECK_FALSE(detail::is_utf8_beginning(not_beginning));
  }
}
