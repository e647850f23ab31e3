// Small vocabularies of every kind, built in code, and texts to try them on. Tests and fuzz targets use them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flywheel/detail/utf8.hpp"
#include "flywheel/io/metadata.hpp"
#include "flywheel/text/tokenizer.hpp"
#include "src/text/byte_alphabet.hpp"

namespace flywheel::test {

using strings = std::vector<std::string>;

/// splitmix64 (Steele et al. 2014): the same numbers everywhere.
class random_numbers {
 public:
  explicit random_numbers(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(next() % n); }

 private:
  std::uint64_t state_;
};

/// Text made of the things that tokenizers treat differently. `ascii`: of ASCII alone.
inline std::string random_text(random_numbers& r, std::size_t parts, bool ascii = false) {
  static const strings plain = {
      "a",    "e",    "the", "he", "in", "Z",  "THE", "Hello", "x",    " ",    " ",    " ",  "  ", "    ", "\t",  "\n",
      "\r\n", "\n\n", "\r",  "\v", "\f", "0",  "1",   "42",    "123",  "9876", "'",    "'s", "'T", "'re",  "'VE", "'ll",
      "'x",   "\"",   ".",   ",",  "!",  "?!", "/",   "//",    "(",    ")",    "{",    "};", "<",  ">",    "$",   "+",
      "=",    "^",    "~",   "|",  "`",  "-",  "_",   "#",     "\x01", "\x1c", "\x7f", "@",  "&",  "\\",   "[",   "]"};
  static const strings foreign = {"é",
                                  "ß",
                                  "Ä",
                                  "ſ",
                                  "'ſ",
                                  "İ",
                                  "ñ",
                                  "e\u0301",
                                  "\u0301",
                                  "\u0308\u0301",
                                  "Привет",
                                  "мир",
                                  "Ω",
                                  "λόγος",
                                  "中",
                                  "文字",
                                  "日本語",
                                  "テ",
                                  "か\u3099",
                                  "한국",
                                  "\u1112\u1161",
                                  "अ",
                                  "नमस्ते",
                                  "ไทย",
                                  "שלום",
                                  "مرحبا",
                                  "٣",
                                  "१२",
                                  "½",
                                  "²",
                                  "Ⅳ",
                                  "\u00a0",
                                  "\u2003",
                                  "\u3000",
                                  "\u0085",
                                  "\u2028",
                                  "\u180e",
                                  "\u200b",
                                  "\u200d",
                                  "\ufeff",
                                  "\ufffd",
                                  "😀",
                                  "👩\u200d🚀",
                                  "🏳\ufe0f",
                                  "…",
                                  "—",
                                  "“",
                                  "、",
                                  "。",
                                  "！",
                                  "：",
                                  "€",
                                  "∑",
                                  "𝕬",
                                  "𝟘",
                                  "\U000e0001",
                                  "ǅ",
                                  "ʰ",
                                  "ª",
                                  "K",
                                  "\u2581"};
  std::string text;
  for (std::size_t i = 0; i < parts; ++i) {
    const bool from_plain = ascii || r.below(3) != 0;
    const strings& source = from_plain ? plain : foreign;
    text += source[r.below(source.size())];
  }
  return text;
}

/// Arbitrary bytes, many of them broken UTF-8.
inline std::string random_bytes(random_numbers& r, std::size_t length) {
  std::string text;
  for (std::size_t i = 0; i < length; ++i)
    text.push_back(static_cast<char>(r.below(4) == 0 ? 'a' + r.below(3) : r.below(256)));
  return text;
}

inline const std::string& sample_text() {
  static const std::string text =
      "The quick brown fox jumps over the lazy dog. The dog, who wasn't lazy at all, said: \"I'm here and they're "
      "there.\"\n\n"
      "In the beginning there were 12 numbers: 1, 22, 333 and 4444; then there were 55555 of them.\n"
      "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i];\n    // the inner product\n}\n"
      "naïve café, Straße, Привет мир и привет другой мир, 中文字 中文, 日本語のテキスト, 한국어, 😀😀 👩\u200d🚀 and "
      "so on.\n";
  return text;
}

inline std::string byte_spelling(unsigned byte) {
  const char* digits = "0123456789ABCDEF";
  return std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">";
}

inline constexpr std::int32_t normal = 1, unknown = 2, control = 3, user_defined = 4, byte_kind = 6;

struct vocabulary_builder {
  strings tokens;
  std::vector<float> scores;
  std::vector<std::int32_t> kinds;
  strings merges;

  token_id add(std::string piece, std::int32_t kind = normal, float score = 0) {
    tokens.push_back(std::move(piece));
    scores.push_back(score);
    kinds.push_back(kind);
    return static_cast<token_id>(tokens.size() - 1);
  }
  [[nodiscard]] io::metadata build(const std::string& model) const {
    io::metadata m;
    m.set("tokenizer.ggml.model", model);
    m.set("tokenizer.ggml.tokens", tokens);
    m.set("tokenizer.ggml.token_type", kinds);
    if (model == "llama" || model == "t5") m.set("tokenizer.ggml.scores", scores);
    if (model == "gpt2") m.set("tokenizer.ggml.merges", merges);
    return m;
  }
};

/// Merges learnt from `words` (sequences of symbols), most frequent pair first.
inline std::vector<std::pair<std::string, std::string>> learn_merges(std::vector<strings> words, std::size_t count) {
  std::vector<std::pair<std::string, std::string>> merges;
  while (merges.size() < count) {
    std::map<std::pair<std::string, std::string>, int> pairs;
    for (const strings& w : words)
      for (std::size_t i = 0; i + 1 < w.size(); ++i) ++pairs[{w[i], w[i + 1]}];
    const std::pair<std::string, std::string>* best = nullptr;
    int most = 1;
    for (const auto& [p, n] : pairs)
      if (n > most) most = n, best = &p;
    if (best == nullptr) break;
    merges.push_back(*best);
    for (strings& w : words)
      for (std::size_t i = 0; i + 1 < w.size(); ++i)
        if (w[i] == merges.back().first && w[i + 1] == merges.back().second) {
          w[i] += w[i + 1];
          w.erase(w.begin() + static_cast<std::ptrdiff_t>(i) + 1);
        }
  }
  return merges;
}

/// Characters of valid text.
inline strings characters(std::string_view text) {
  strings out;
  while (!text.empty()) {
    const std::size_t n = std::max<std::size_t>(detail::utf8_length(text), 1);
    out.emplace_back(text.substr(0, n));
    text.remove_prefix(n);
  }
  return out;
}

/// `text` cut before every space.
inline std::vector<std::string> spaced_words(std::string_view text) {
  strings words;
  std::size_t start = 0;
  for (std::size_t i = 1; i <= text.size(); ++i)
    if (i == text.size() || text[i] == ' ') {
      words.emplace_back(text.substr(start, i - start));
      start = i;
    }
  return words;
}

inline std::string spell(std::string_view bytes) {
  std::string out(2 * bytes.size(), '\0');
  out.resize(text::spell_bytes(bytes, out.data()));
  return out;
}

/// A byte-level vocabulary learnt from the sample text, with <|bos|>, <|eot_id|> and the user-defined <tool>.
inline vocabulary_builder bpe_vocabulary(std::size_t merges = 300) {
  vocabulary_builder v;
  for (unsigned b = 0; b < 256; ++b) {
    const char c = static_cast<char>(b);
    v.add(spell({&c, 1}));
  }
  std::vector<strings> words;
  for (const std::string& w : spaced_words(sample_text())) words.push_back(characters(spell(w)));
  std::map<std::string, bool> known;
  for (const auto& [a, b] : learn_merges(words, merges)) {
    v.merges.push_back(a + " " + b);
    if (known.emplace(a + b, true).second) v.add(a + b);
  }
  v.add("<|bos|>", control);
  v.add("<|eot_id|>", control);
  v.add("<tool>", user_defined);
  return v;
}

inline io::metadata bpe_metadata(const std::string& pre = "gpt-2", std::size_t merges = 300) {
  const vocabulary_builder v = bpe_vocabulary(merges);
  io::metadata m = v.build("gpt2");
  m.set("tokenizer.ggml.pre", pre);
  m.set("tokenizer.ggml.bos_token_id", static_cast<std::uint32_t>(v.tokens.size() - 3));
  m.set("tokenizer.ggml.eos_token_id", static_cast<std::uint32_t>(v.tokens.size() - 2));
  return m;
}

/// A SentencePiece vocabulary learnt from the sample text: unknown, bos, eos, the bytes, then pieces by falling score.
/// `bytes` off: without byte tokens.
inline vocabulary_builder sentencepiece_vocabulary(bool bytes = true, std::size_t merges = 300) {
  vocabulary_builder v;
  v.add("<unk>", unknown);
  v.add("<s>", control);
  v.add("</s>", control);
  if (bytes)
    for (unsigned b = 0; b < 256; ++b) v.add(byte_spelling(b), byte_kind);
  std::vector<strings> words;
  std::map<std::string, bool> known;
  strings letters;
  for (std::string w : spaced_words(sample_text())) {
    if (!w.empty() && w[0] == ' ') w = "\u2581" + w.substr(1);
    words.push_back(characters(w));
    for (const std::string& c : words.back())
      if (c.size() <= 3 && c != "\n" && c != "\t" && known.emplace(c, true).second) letters.push_back(c);
  }
  float score = 0;
  for (const auto& [a, b] : learn_merges(words, merges))
    if (known.emplace(a + b, true).second) v.add(a + b, normal, score -= 1);
  for (const std::string& c : letters) v.add(c, normal, score -= 1);
  v.add("<tool>", user_defined);
  v.add("<|im_end|>", control);
  return v;
}

inline io::metadata spm_metadata(bool bytes = true) { return sentencepiece_vocabulary(bytes).build("llama"); }

inline io::metadata unigram_metadata(bool bytes = false) {
  io::metadata m = sentencepiece_vocabulary(bytes).build("t5");
  m.set("tokenizer.ggml.unknown_token_id", std::uint32_t{0});
  m.set("tokenizer.ggml.eos_token_id", std::uint32_t{2});
  m.set("tokenizer.ggml.padding_token_id", std::uint32_t{0});
  return m;
}

inline vocabulary_builder wordpiece_vocabulary() {
  vocabulary_builder v;
  for (const char* special : {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}) v.add(special, control);
  for (const char* piece :
       {"\u2581hello", "\u2581world",   "\u2581un",  "aff",      "able",     "\u2581caf", "e",       "\u2581i",
        "\u2581'",     "\u2581m",       "\u2581don", "\u2581t",  "\u2581.",  "\u2581,",   "\u2581!", "\u2581?",
        "\u2581中",    "\u2581文",      "\u2581s",   "\u2581re", "\u2581ve", "s",         "\u25811", "2",
        "3",           "\u2581strasse", "\u2581n",   "\u2581-",  "\u2581x",  "x"})
    v.add(piece);
  return v;
}

inline io::metadata wordpiece_metadata() {
  io::metadata m = wordpiece_vocabulary().build("bert");
  m.set("tokenizer.ggml.padding_token_id", std::uint32_t{0});
  m.set("tokenizer.ggml.unknown_token_id", std::uint32_t{1});
  m.set("tokenizer.ggml.cls_token_id", std::uint32_t{2});
  m.set("tokenizer.ggml.seperator_token_id", std::uint32_t{3});
  m.set("tokenizer.ggml.mask_token_id", std::uint32_t{4});
  return m;
}

/// Throws what from_metadata says when it refuses.
inline text::tokenizer make(const io::metadata& m) { return text::tokenizer::from_metadata(m).value(); }

inline strings pieces(const text::tokenizer& t, const std::vector<token_id>& ids) {
  strings out;
  for (const token_id id : ids) out.emplace_back(t.piece(id));
  return out;
}

inline strings encode_pieces(const text::tokenizer& t, std::string_view text,
                             const text::encode_options& options = {}) {
  return pieces(t, t.encode(text, options).value());
}

}  // namespace flywheel::test
