// SentencePiece BPE and unigram against their definitions on whole texts.
#include <algorithm>
#include <cmath>
#include <limits>

#include "flywheel/detail/utf8.hpp"
#include "src/text/charsmap.hpp"
#include "support/catch.hpp"
#include "vocabularies.hpp"

using namespace flywheel;
using test::strings;

namespace {

std::string escape(std::string_view text) {
  std::string out;
  for (const char c : text) out += c == ' ' ? "\u2581" : std::string(1, c);
  return out;
}

bool is_text(const text::tokenizer& t, token_id id) {
  const auto k = t.kind(id);
  return k == text::token_kind::normal || k == text::token_kind::user_defined || k == text::token_kind::unused;
}

void fall_back(const text::tokenizer& t, const std::string& bytes, std::vector<token_id>& ids) {
  for (const char c : bytes) {
    const token_id id = t.find(test::byte_spelling(static_cast<unsigned char>(c)));
    ids.push_back(id >= 0 ? id : t.special().unknown);
  }
}

/// The whole text at once, without cutting it into words.
std::vector<token_id> textbook_bpe(const text::tokenizer& t, const std::vector<float>& scores,
                                   const std::string& escaped) {
  strings symbols = test::characters(escaped);
  while (true) {
    std::size_t best = symbols.size();
    float score = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const token_id id = t.find(symbols[i] + symbols[i + 1]);
      if (id < 0 || !is_text(t, id)) continue;
      const float s = scores[static_cast<std::size_t>(id)];
      if (best == symbols.size() || s > score) score = s, best = i;
    }
    if (best == symbols.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  std::vector<token_id> ids;
  for (const std::string& s : symbols) {
    const token_id id = t.find(s);
    if (id >= 0 && is_text(t, id))
      ids.push_back(id);
    else
      fall_back(t, s, ids);
  }
  return ids;
}

/// The greatest sum of scores over all ways to cut the whole text.
double best_score(const text::tokenizer& t, const std::vector<float>& scores, double unknown_score,
                  const std::string& escaped) {
  std::vector<double> best(escaped.size() + 1, -std::numeric_limits<double>::infinity());
  best[0] = 0;
  for (std::size_t at = 0; at < escaped.size();) {
    const std::size_t n = detail::utf8_length(std::string_view(escaped).substr(at));
    bool covered = false;
    for (std::size_t end = at + 1; end <= escaped.size(); ++end) {
      const token_id id = t.find(std::string_view(escaped).substr(at, end - at));
      if (id < 0 || !is_text(t, id)) continue;
      covered = covered || end == at + n;
      const double s = t.kind(id) == text::token_kind::user_defined
                           ? 0.0
                           : static_cast<double>(scores[static_cast<std::size_t>(id)]);
      best[end] = std::max(best[end], best[at] + s);
    }
    if (!covered) best[at + n] = std::max(best[at + n], best[at] + unknown_score);
    at += n;
  }
  return best[escaped.size()];
}

/// A double array in Darts-clone's layout for single-byte keys, and the replacements.
std::string small_charsmap(const std::vector<std::pair<char, std::string>>& entries) {
  // The root's offset is 256: unit 256 ^ byte is the child, and its value lies at child ^ offset.
  std::vector<std::uint32_t> units(1024, 0);
  units[0] = 256U << 10;
  std::string replacements;
  std::uint32_t slot = 512;
  for (const auto& [key, replacement] : entries) {
    const auto byte = static_cast<std::uint32_t>(static_cast<unsigned char>(key));
    const std::uint32_t child = 256 ^ byte;
    units[child] = byte | 1U << 8 | (child ^ slot) << 10;
    units[slot++] = 1U << 31 | static_cast<std::uint32_t>(replacements.size());
    replacements += replacement + '\0';
  }
  std::string blob;
  const auto put = [&](std::uint32_t v) {
    for (int i = 0; i < 4; ++i) blob.push_back(static_cast<char>(v >> (8 * i) & 0xFF));
  };
  put(static_cast<std::uint32_t>(units.size() * 4));
  for (const std::uint32_t u : units) put(u);
  return blob + replacements;
}

std::vector<std::uint8_t> bytes_of(const std::string& s) { return {s.begin(), s.end()}; }

}  // namespace

TEST_CASE("SentencePiece BPE follows the definition on the whole text", "[text][spm]") {
  for (const int kind : {0, 1, 2, 3}) {
    auto v = test::sentencepiece_vocabulary(kind != 1);
    if (kind == 2) {  // tokens across words: where they can lie, the text must not be cut
      v.add("e\u2581d", test::normal, 0.5F);
      v.add("\u2581lazy\u2581dog", test::normal, -0.5F);
      v.add("zy\u2581d", test::normal, 0.75F);
      v.add("s\u2581\u2581", test::normal, 0.25F);
    }
    if (kind == 3)  // few distinct scores: ties go to the left
      for (std::size_t i = 0; i < v.scores.size(); ++i) v.scores[i] = static_cast<float>(i % 3);
    const auto t = test::make(v.build("llama"));
    CHECK(t.model_name() == "spm-bpe");
    test::random_numbers random(5);
    strings texts = {"a", " ", "  ", " a", "the lazy dog", test::sample_text(), "this is  odd", "a\u2581b"};
    for (int i = 0; i < 150; ++i) texts.push_back(test::random_text(random, 1 + random.below(40)));
    for (std::string text : texts) {
      if (text.find("<tool>") != std::string::npos) continue;
      INFO(kind << ": " << text);
      const auto ids = t.encode(text).value();
      CHECK(ids == textbook_bpe(t, v.scores, escape(" " + text)));
      for (std::size_t at = 0; (at = text.find("\u2581", at)) != std::string::npos;) text.replace(at, 3, " ");
      if (kind != 1) CHECK(t.decode(ids).value() == text);
    }
  }
}

TEST_CASE("SentencePiece BPE: spaces, special tokens, bytes", "[text][spm]") {
  auto m = test::spm_metadata();
  const auto t = test::make(m);
  CHECK(t.special().bos == 1);
  CHECK(t.special().eos == 2);
  CHECK(t.special().unknown == 0);
  CHECK(t.special().eot == t.find("<|im_end|>"));
  CHECK(t.encode("").value().empty());
  CHECK(t.encode("", {.add_special = true}).value() == std::vector<token_id>{1});
  CHECK(test::encode_pieces(t, "the") == strings{"\u2581the"});
  CHECK(test::encode_pieces(t, "the</s>the", {.parse_special = true}) == strings{"\u2581the", "</s>", "\u2581the"});
  CHECK(test::encode_pieces(t, "the<tool>the") == strings{"\u2581the", "<tool>", "\u2581the"});
  CHECK(test::encode_pieces(t, "\x01") == strings{"\u2581", "<0x01>"});
  const auto plain = t.encode("</s>").value();
  CHECK(std::find(plain.begin(), plain.end(), 2) == plain.end());

  CHECK(t.decode(t.encode(" two  spaces ").value()).value() == " two  spaces ");
  CHECK(t.decode(std::vector<token_id>{1, t.find("\u2581the")}).value() == "<s> the");
  CHECK(t.decode(std::vector<token_id>{1, t.find("\u2581the")}, {.render_special = false}).value() == "the");
  CHECK(t.decode(t.encode("the").value(), {.strip_leading_space = false}).value() == " the");

  m.set("tokenizer.ggml.add_space_prefix", false);
  const auto bare = test::make(m);
  CHECK(test::encode_pieces(bare, "the the") == strings{"the", "\u2581the"});
  CHECK(bare.decode(bare.encode(" the").value()).value() == " the");
}

TEST_CASE("SentencePiece BPE keeps invalid bytes", "[text][spm]") {
  const auto t = test::make(test::spm_metadata());
  test::random_numbers random(6);
  for (int i = 0; i < 200; ++i) {
    std::string bytes = test::random_bytes(random, random.below(60));
    bytes.erase(std::remove(bytes.begin(), bytes.end(), ' '), bytes.end());
    CHECK(t.decode(t.encode(bytes).value()).value() == bytes);
  }
  // An invalid lead byte takes the bytes after it along, as many as it announces, also the mark of a space.
  CHECK(t.decode(t.encode("a\xFF b").value()).value() ==
        "a\xFF\u2581"
        "b");
}

TEST_CASE("SentencePiece BPE: no text turns into a control token", "[text][spm]") {
  auto v = test::sentencepiece_vocabulary();
  for (const char* part : {"<", "/", "s", ">", "</", "s>"})
    if (std::find(v.tokens.begin(), v.tokens.end(), part) == v.tokens.end()) v.add(part, test::normal, 1);
  v.scores[2] = 5;  // </s> has both its parts and the best score
  const auto t = test::make(v.build("llama"));
  const auto ids = t.encode("x</s>").value();
  CHECK(std::find(ids.begin(), ids.end(), 2) == ids.end());
}

TEST_CASE("unigram finds the best sum of scores", "[text][unigram]") {
  for (const bool bytes : {false, true}) {
    auto v = test::sentencepiece_vocabulary(bytes);
    for (std::size_t i = 0; i < v.scores.size(); ++i)
      if (v.kinds[i] == test::normal) v.scores[i] = -1 - 0.37F * static_cast<float>((i * 7919) % 101);
    v.add("e\u2581d", test::normal, -2);  // across words
    auto m = v.build("t5");
    m.set("tokenizer.ggml.unknown_token_id", std::uint32_t{0});
    m.set("tokenizer.ggml.eos_token_id", std::uint32_t{2});
    const auto t = test::make(m);
    CHECK(t.model_name() == "unigram");
    float worst = 0;
    for (std::size_t i = 0; i < v.scores.size(); ++i)
      if (v.kinds[i] == test::normal) worst = std::min(worst, v.scores[i]);
    test::random_numbers random(8);
    strings texts = {"the lazy dog", "the dog", test::sample_text()};
    for (int i = 0; i < 150; ++i) texts.push_back(test::random_text(random, 1 + random.below(30)));
    for (const std::string& text : texts) {
      if (text.find("<tool>") != std::string::npos) continue;
      INFO(text);
      const auto ids = t.encode(text).value();
      std::string plain = " " + text;
      for (std::size_t at = 0; (at = plain.find("\u2581", at)) != std::string::npos;) plain.replace(at, 3, " ");
      const std::string escaped = escape(plain);
      if (bytes) {
        CHECK(t.decode(ids, {.strip_leading_space = false}).value() == plain);
        continue;
      }
      // Without byte tokens: the ids' scores add up to the optimum; a run of unknown characters is one unknown token.
      double sum = 0;
      std::size_t unknowns = 0, last_unknown = 0;
      std::string spelled;
      for (const token_id id : ids) {
        if (id == 0) {
          ++unknowns;
          CHECK(spelled.size() + 1 != last_unknown);
          last_unknown = spelled.size() + 1;
          continue;
        }
        sum += static_cast<double>(v.scores[static_cast<std::size_t>(id)]);
        spelled += t.piece(id);
      }
      std::size_t unknown_characters = 0;
      for (const std::string& c : test::characters(escaped))
        if (t.find(c) < 0) ++unknown_characters;
      const double optimum = best_score(t, v.scores, static_cast<double>(worst) - 10, escaped);
      if (unknown_characters == 0) {
        CHECK(sum == Approx(optimum));
        CHECK(spelled == escaped);
      } else {
        // How many characters its unknown tokens stand for follows from the optimum.
        const double each = static_cast<double>(worst) - 10, count = std::round((optimum - sum) / each);
        CHECK(sum + count * each == Approx(optimum));
        CHECK(count >= static_cast<double>(unknowns));
        CHECK(count <= static_cast<double>(unknown_characters));
      }
    }
  }
}

TEST_CASE("unigram: bytes, unknown characters, spaces", "[text][unigram]") {
  auto m = test::unigram_metadata(true);
  auto t = test::make(m);
  CHECK(test::encode_pieces(t, "\u4e5d") == strings{"\u2581", "<0xE4>", "<0xB9>", "<0x9D>"});
  CHECK(t.encode("the", {.add_special = true}).value().back() == 2);
  CHECK(t.encode("a\xFF").value() == t.encode("a\uFFFD").value());

  m = test::unigram_metadata(false);
  t = test::make(m);
  CHECK(test::encode_pieces(t, "\u4e5d\u4e5d the") == strings{"\u2581", "<unk>", "\u2581the"});
  CHECK(test::encode_pieces(t, "  the   the ").size() == test::encode_pieces(t, "the the").size() + 5);
  m.set("tokenizer.ggml.remove_extra_whitespaces", true);
  t = test::make(m);
  CHECK(t.encode("  the   the ").value() == t.encode("the the").value());
  CHECK(t.encode("   ").value().empty());
  m.set("tokenizer.ggml.add_space_prefix", false);
  t = test::make(m);
  CHECK(test::encode_pieces(t, " the the") == strings{"the", "\u2581the"});
}

TEST_CASE("unigram: user-defined tokens cost nothing inside words", "[text][unigram]") {
  auto v = test::sentencepiece_vocabulary(false);
  const token_id tool = v.add("\u2581<x>", test::user_defined);  // with the mark: matched as text, not spelled out
  auto m = v.build("t5");
  m.set("tokenizer.ggml.unknown_token_id", std::uint32_t{0});
  m.set("tokenizer.ggml.eos_token_id", std::uint32_t{2});
  CHECK(test::make(m).encode("<x>").value() == std::vector{tool});
}

TEST_CASE("precompiled normalisation", "[text][unigram]") {
  const std::string blob = small_charsmap({{'A', "a"}, {'\t', " "}, {'#', ""}, {'&', "and "}});
  const auto map = text::charsmap::parse(blob);
  REQUIRE(map.has_value());
  const auto normal = [&](std::string_view s) {
    std::string out;
    map->normalize(s, out);
    return out;
  };
  CHECK(normal("BAA\tc#&é") == "Baa cand é");
  CHECK(normal("\xFFz") == "\uFFFDz");
  CHECK(normal("") == "");

  auto m = test::unigram_metadata(false);
  m.set("tokenizer.ggml.precompiled_charsmap", bytes_of(small_charsmap({{'T', "t"}, {'#', ""}})));
  const auto t = test::make(m);
  CHECK(t.encode("The #the").value() == t.encode("the the").value());

  CHECK_FALSE(text::charsmap::parse("abc").has_value());
  CHECK_FALSE(text::charsmap::parse(std::string("\x08\0\0\0abcd", 8)).has_value());  // longer than the blob
  CHECK_FALSE(text::charsmap::parse(std::string("\x03\0\0\0abcd", 8)).has_value());  // not whole units
  CHECK_FALSE(text::charsmap::parse(blob.substr(0, blob.size() - 1)).has_value());   // replacement without end
  m.set("tokenizer.ggml.precompiled_charsmap", std::vector<float>{1});
  CHECK_FALSE(text::tokenizer::from_metadata(m).has_value());

  // Arbitrary arrays lead nowhere, but not outside.
  test::random_numbers random(9);
  for (int i = 0; i < 300; ++i) {
    std::string wild = blob;
    for (int k = 0; k < 200; ++k) wild[4 + random.below(wild.size() - 5)] = static_cast<char>(random.below(256));
    const auto parsed = text::charsmap::parse(wild);
    REQUIRE(parsed.has_value());
    std::string out;
    parsed->normalize("BAA\tc#&\xC3\xA9 " + test::random_bytes(random, 50), out);
  }
}
