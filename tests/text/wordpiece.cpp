#include "support/catch.hpp"
#include "vocabularies.hpp"

using namespace flywheel;
using test::strings;

TEST_CASE("WordPiece covers words with the longest pieces", "[text][wordpiece]") {
  const auto t = test::make(test::wordpiece_metadata());
  CHECK(t.model_name() == "wordpiece");
  const auto is = [&](std::string_view text, const strings& expected) {
    INFO(text);
    CHECK(test::encode_pieces(t, text) == expected);
  };
  is("hello world", {"\u2581hello", "\u2581world"});
  is("  Hello\tWORLD\n", {"\u2581hello", "\u2581world"});
  is("unaffable", {"\u2581un", "aff", "able"});
  is("unaffables unaffablez", {"\u2581un", "aff", "able", "s", "[UNK]"});
  is("Café cafe\u0301 CAFÉ", {"\u2581caf", "e", "\u2581caf", "e", "\u2581caf", "e"});
  is("hello,world!", {"\u2581hello", "\u2581,", "\u2581world", "\u2581!"});
  is("中文中", {"\u2581中", "\u2581文", "\u2581中"});
  is("x中x", {"\u2581x", "\u2581中", "\u2581x"});
  is("he\u200bllo hel\u00adlo", {"\u2581hello", "\u2581hello"});  // format characters vanish
  is("hello\u00a0world\u3000hello\u2028x", {"\u2581hello", "\u2581world", "\u2581hello", "\u2581x"});
  is("hello\u0085x hello\x01s\v", {"\u2581hello", "x", "\u2581hello", "s"});  // controls vanish, they do not separate
  is("\ufeffhello\ufffd", {"\u2581hello"});
  is("hel\xFFlo", {"\u2581hello"});  // as do invalid bytes
  is("", {});
  is(" \n ", {});
  is("[CLS]", {"[UNK]", "[UNK]", "[UNK]"});
  is(std::string(100, 'x'), strings{[] {
       strings s(100, "x");
       s[0] = "\u2581x";
       return s;
     }()});
  is(std::string(101, 'x'), {"[UNK]"});
  CHECK(test::encode_pieces(t, "hello", {.add_special = true}) == strings{"[CLS]", "\u2581hello", "[SEP]"});
  CHECK(test::encode_pieces(t, "hello [MASK]", {.parse_special = true}) == strings{"\u2581hello", "[MASK]"});
}

TEST_CASE("WordPiece: case and accents are kept where the file says so", "[text][wordpiece]") {
  auto m = test::wordpiece_metadata();
  m.set("tokenizer.ggml.normalizer.lowercase", false);
  CHECK(test::encode_pieces(test::make(m), "hello Hello caf\u00e9") == strings{"\u2581hello", "[UNK]", "[UNK]"});
  m.set("tokenizer.ggml.normalizer.strip_accents", true);
  CHECK(test::encode_pieces(test::make(m), "hello Hello caf\u00e9") ==
        strings{"\u2581hello", "[UNK]", "\u2581caf", "e"});
}

TEST_CASE("WordPiece text is tidied", "[text][wordpiece]") {
  const auto t = test::make(test::wordpiece_metadata());
  const auto round = [&](std::string_view text) { return t.decode(t.encode(text).value()).value(); };
  CHECK(round("Hello, world!") == "hello, world!");
  CHECK(round("hello ? hello . x") == "hello? hello. x");
  CHECK(round("i'm") == "i'm");
  CHECK(round("x 's") == "x's");
  CHECK(round("don't") == "don't");
  CHECK(t.decode(t.encode("hello", {.add_special = true}).value(), {.render_special = false}).value() == "hello");
}
