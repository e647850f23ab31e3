// Tokens with a role, and the decoder.
#include "flywheel/detail/utf8.hpp"
#include "support/catch.hpp"
#include "vocabularies.hpp"

using namespace flywheel;
using test::strings;

TEST_CASE("special tokens are found, the longest first", "[text][special]") {
  auto v = test::bpe_vocabulary(0);
  v.add("<a>", test::control);
  v.add("<a>b", test::control);
  v.add("<a><a>", test::user_defined);
  v.kinds['<'] = test::control;
  v.add("<u>", test::unknown);
  auto m = v.build("gpt2");
  const auto t = test::make(m);
  const auto parsed = [&](std::string_view s) { return test::encode_pieces(t, s, {.parse_special = true}); };
  const auto plain = [&](std::string_view s) { return test::encode_pieces(t, s); };
  CHECK(parsed("x<a>y") == strings{"x", "<a>", "y"});
  CHECK(parsed("<a>b<a>c") == strings{"<a>b", "<a>", "c"});
  CHECK(parsed("<a><a>b") == strings{"<a><a>", "b"});
  CHECK(parsed("<b") == strings{"<", "b"});
  CHECK(parsed("<u>") == strings{"<u>"});
  CHECK(parsed("<a") == strings{"<", "a"});
  CHECK(plain("<a>") == strings{"<", "a", ">"});
  CHECK(t.encode("<").value() == std::vector{t.find("<")});
  CHECK(plain("x<a><a>y") == strings{"x", "<a><a>", "y"});
  CHECK(plain("<tool><|bos|>").front() == "<tool>");
  CHECK(plain("<tool><|bos|>").size() == 8);
}

TEST_CASE("some families' special tokens swallow white space", "[text][special]") {
  auto v = test::sentencepiece_vocabulary();
  v.add("<|end|>", test::control);
  auto m = v.build("llama");
  m.set("general.name", "Phi-3 mini");
  const auto phi = test::make(m);
  CHECK(test::encode_pieces(phi, "the<|end|> \n the", {.parse_special = true}) ==
        strings{"\u2581the", "<|end|>", "\u2581the"});
  CHECK(test::encode_pieces(phi, "<s> the", {.parse_special = true}) == strings{"<s>", "\u2581", "\u2581the"});
  m.set("general.name", "other");
  CHECK(test::encode_pieces(test::make(m), "the<|end|> the", {.parse_special = true}) ==
        strings{"\u2581the", "<|end|>", "\u2581", "\u2581the"});

  auto w = test::wordpiece_metadata();
  w.set("general.name", "Modern-BERT");
  CHECK(test::encode_pieces(test::make(w), "hello  [MASK] x", {.parse_special = true}) ==
        strings{"\u2581hello", "[MASK]", "\u2581x"});
}

TEST_CASE("bos and eos are added as the file asks", "[text][special]") {
  auto m = test::bpe_metadata("gpt-2");
  const token_id bos = static_cast<token_id>(m.integer("tokenizer.ggml.bos_token_id").value());
  CHECK(test::make(m).encode("", {.add_special = true}).value().empty());
  CHECK(test::make(test::bpe_metadata("llama-bpe")).encode("", {.add_special = true}).value() == std::vector{bos});
  m.set("tokenizer.ggml.add_bos_token", true);
  m.set("tokenizer.ggml.add_eos_token", true);
  CHECK(test::make(m).encode("a", {.add_special = true}).value() == std::vector{bos, test::make(m).find("a"), bos + 1});
  CHECK(test::make(m).encode("a").value().size() == 1);
  m.set("tokenizer.ggml.eos_token_id", std::uint32_t{0xFFFFFFFF});  // "none"
  const auto failed = text::tokenizer::from_metadata(m);
  REQUIRE_FALSE(failed.has_value());
  CHECK(failed.error().code == errc::malformed);
}

TEST_CASE("tokens that end a generation", "[text][special]") {
  const auto ends = [](const strings& spellings, std::int32_t kind, const io::value* eos = nullptr) {
    auto v = test::bpe_vocabulary(0);
    v.kinds.resize(256), v.tokens.resize(256), v.scores.resize(256);
    for (const std::string& s : spellings) v.add(s, kind);
    auto m = v.build("gpt2");
    if (eos != nullptr) m.set("tokenizer.ggml.eos_token_id", *eos);
    const auto t = test::make(m);
    strings out;
    for (token_id id = 0; id < t.size(); ++id)
      if (t.ends_generation(id)) out.emplace_back(t.piece(id));
    CHECK_FALSE(t.ends_generation(-1));
    CHECK_FALSE(t.ends_generation(t.size()));
    return out;
  };
  CHECK(ends({}, test::control).empty());
  for (const char* s : {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
                        "<|eom_id|>", "<｜end▁of▁sentence｜>", "<|return|>", "<|file_sep|>"})
    CHECK(ends({s}, test::normal) == strings{s});
  for (const char* s : {"</s>", "<eos>", "[EOS]", "<EOT>"}) {
    CHECK(ends({s}, test::normal).empty());  // may be a piece of ordinary text
    CHECK(ends({s}, test::control) == strings{s});
  }
  CHECK(ends({"<|start|>", "<|end|>", "<|return|>", "<|call|>"}, test::control) == strings{"<|return|>", "<|call|>"});
  const io::value eos = std::uint32_t{65};
  CHECK(ends({"<|im_end|>"}, test::control, &eos).size() == 2);
}

TEST_CASE("an empty tokenizer answers", "[text][special]") {
  const text::tokenizer none;
  CHECK_FALSE(none);
  CHECK(none.size() == 0);
  CHECK(none.piece(0).empty());
  CHECK(none.find("a") == -1);
  CHECK(none.special().bos == -1);
  CHECK_FALSE(none.ends_generation(0));
  CHECK(none.model_name().empty());
  CHECK(none.encode("a").error().code == errc::invalid_argument);
  CHECK(none.decode({}).error().code == errc::invalid_argument);
  text::decoder d(none);
  CHECK(d.push(0).error().code == errc::invalid_argument);
  CHECK(d.flush().empty());
}

TEST_CASE("accessors check the id", "[text][special]") {
  const auto t = test::make(test::spm_metadata());
  for (const token_id bad :
       {-1, t.size(), std::numeric_limits<token_id>::min(), std::numeric_limits<token_id>::max()}) {
    CHECK(t.piece(bad).empty());
    CHECK(t.kind(bad) == text::token_kind::unused);
    const auto failed = t.decode(std::vector{token_id{5}, bad});
    REQUIRE_FALSE(failed.has_value());
    CHECK(failed.error().code == errc::invalid_argument);
    text::decoder d(t);
    CHECK(d.push(bad).error().code == errc::invalid_argument);
  }
  CHECK(t.piece(1) == "<s>");
  CHECK(t.kind(1) == text::token_kind::control);
  CHECK(t.kind(3) == text::token_kind::byte);
  CHECK(t.find("<s>") == 1);
  CHECK(t.find("no such piece") == -1);
  CHECK(t.find("") == -1);
}

TEST_CASE("the decoder gives whole characters only, and all of them", "[text][decoder]") {
  test::random_numbers random(10);
  const std::vector<io::metadata> all = {test::spm_metadata(), test::bpe_metadata("qwen2", 20),
                                         test::unigram_metadata(true), test::wordpiece_metadata()};
  for (const io::metadata& m : all) {
    const auto t = test::make(m);
    for (int i = 0; i < 100; ++i) {
      const auto ids = t.encode(i == 0 ? test::sample_text() : test::random_text(random, random.below(60))).value();
      for (const bool special : {true, false}) {
        text::decoder d(t, {.render_special = special});
        std::string text;
        for (const token_id id : ids) {
          const auto more = d.push(id);
          REQUIRE(more.has_value());
          CHECK(detail::is_utf8(*more));
          text += *more;
        }
        text += d.flush();
        CHECK(text == t.decode(ids, {.render_special = special}).value());
      }
    }
  }
}

TEST_CASE("the decoder turns invalid bytes into U+FFFD", "[text][decoder]") {
  const auto t = test::make(test::spm_metadata());
  test::random_numbers random(11);
  for (int i = 0; i < 300; ++i) {
    const std::string bytes = test::random_bytes(random, random.below(30));
    text::decoder d(t, {}, true);
    std::string text;
    for (const char c : bytes) text += d.push(t.find(test::byte_spelling(static_cast<unsigned char>(c)))).value();
    text += d.flush();
    CHECK(text == detail::repair_utf8(bytes));
  }
  text::decoder d(t);
  const auto byte = [&](unsigned b) { return d.push(t.find(test::byte_spelling(b))).value(); };
  CHECK(byte(0xF0) == "");
  CHECK(byte(0x9F) == "");
  CHECK(byte(0x98) == "");
  CHECK(byte(0x80) == "😀");
  CHECK(byte(0xE2) == "");
  CHECK(byte('a') == "\uFFFDa");
  CHECK(byte(0xE2) == "");
  CHECK(byte(0x82) == "");
  CHECK(d.flush() == "\uFFFD\uFFFD");
  CHECK(d.flush() == "");
}

TEST_CASE("the decoder's first space", "[text][decoder]") {
  const auto t = test::make(test::spm_metadata());
  const token_id the = t.find("\u2581the");
  REQUIRE(the >= 0);
  text::decoder start(t);
  CHECK(start.push(the).value() == "the");
  CHECK(start.push(the).value() == " the");
  text::decoder going_on(t, {}, true);
  CHECK(going_on.push(the).value() == " the");
  text::decoder hidden(t, {.render_special = false});
  CHECK(hidden.push(1).value() == "");
  CHECK(hidden.push(the).value() == "the");
}

TEST_CASE("the decoder tidies across pushes", "[text][decoder]") {
  auto v = test::wordpiece_vocabulary();
  for (const char* p : {" ", "'", " n't", "ve", "v", "\u2581n't"}) v.add(p);
  auto m = v.build("bert");
  m.set("tokenizer.ggml.unknown_token_id", std::uint32_t{1});
  const auto t = test::make(m);
  test::random_numbers random(12);
  for (int i = 0; i < 500; ++i) {
    std::vector<token_id> ids;
    for (std::size_t n = random.below(12); n != 0; --n)
      ids.push_back(static_cast<token_id>(5 + random.below(static_cast<std::size_t>(t.size()) - 5)));
    text::decoder d(t);
    std::string text;
    for (const token_id id : ids) text += d.push(id).value();
    text += d.flush();
    CHECK(text == t.decode(ids).value());
  }
}
