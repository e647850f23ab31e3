#include "wordpiece.hpp"

#include "flywheel/detail/utf8.hpp"
#include "normalize.hpp"

namespace flywheel::inline v0::text {
namespace {

/// Longer words are unknown as a whole, as in BERT's own tokenizer.
constexpr std::size_t longest_word = 100;

/// Characters that BERT treats as words of their own: the CJK blocks, as its tokenizer lists them.
bool is_ideograph(std::uint32_t c) noexcept {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
         (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B820 && c <= 0x2CEAF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

bool is_ascii_symbol(std::uint32_t c) noexcept {
  return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) || (c >= 123 && c <= 126);
}

}  // namespace

wordpiece_codec::wordpiece_codec(const vocabulary& v, const wordpiece_options& options)
    : vocabulary_(v), options_(options) {
  std::vector<std::pair<std::string_view, token_id>> entries;
  for (token_id id = 0; id < v.size(); ++id)
    if (is_text_kind(v.kind(id)) && v.piece(id) != escaped_space) entries.emplace_back(v.piece(id), id);
  pieces_ = trie(std::move(entries));
}

result<void> wordpiece_codec::encode(const std::vector<segment>& segments, std::size_t text_bytes,
                                     std::vector<token_id>& out) const {
  word work(text_bytes);
  for (const segment& s : segments) {
    if (s.id >= 0)
      out.push_back(s.id);
    else
      encode_text(s.text, work, out);
  }
  return {};
}

void wordpiece_codec::encode_text(std::string_view text, word& work, std::vector<token_id>& out) const {
  work.text.assign(escaped_space);
  work.characters = 0;
  while (!text.empty()) {
    const auto [code, length] = detail::decode_utf8(text);
    text.remove_prefix(length == 0 ? 1 : length);
    if (length == 0) continue;  // invalid bytes are dropped
    if (code < 0x80) {
      add_ascii(static_cast<char>(code), work, out);
      continue;
    }
    const bool alone = is_ideograph(code);
    if (alone) finish(work, out);
    std::uint32_t parts[4] = {code};
    const std::uint32_t count = options_.strip_accents ? decompose(code, parts) : 1;
    for (std::uint32_t i = 0; i < count; ++i) {
      if (options_.strip_accents && is_combining_mark(parts[i])) continue;
      add_character(options_.lowercase ? to_lower(parts[i]) : parts[i], work, out);
    }
    if (alone) finish(work, out);
  }
  finish(work, out);
}

void wordpiece_codec::add_ascii(char c, word& work, std::vector<token_id>& out) const {
  const bool capital = c >= 'A' && c <= 'Z';
  if (capital || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) {  // nearly all of English
    work.text.push_back(capital && options_.lowercase ? static_cast<char>(c + 32) : c);
    ++work.characters;
  } else {
    add_character(static_cast<unsigned char>(c), work, out);
  }
}

void wordpiece_codec::add_character(std::uint32_t code, word& work, std::vector<token_id>& out) const {
  if (code == '\t' || code == '\n' || code == '\r') return finish(work, out);
  if (code == 0 || code == 0xFFFD || is_control(code)) return;
  if (is_space(code)) return finish(work, out);
  const bool alone = code < 0x80 ? is_ascii_symbol(code) : is_punctuation(code);
  if (alone) finish(work, out);
  detail::append_utf8(work.text, code);
  ++work.characters;
  if (alone) finish(work, out);
}

void wordpiece_codec::finish(word& work, std::vector<token_id>& out) const {
  if (work.characters == 0) return;
  const char* const begin = work.text.data() + escaped_space.size();
  const char* const end = work.text.data() + work.text.size();
  work.cache.append(begin, static_cast<std::size_t>(end - begin), end, out,
                    [&](std::vector<token_id>& ids) { cover(work, ids); });
  work.text.resize(escaped_space.size());
  work.characters = 0;
}

void wordpiece_codec::cover(const word& work, std::vector<token_id>& out) const {
  const std::string_view text = work.text;
  const std::size_t start = out.size();
  bool known = work.characters <= longest_word;
  for (std::size_t at = 0; known && at < text.size();) {
    token_id best = -1;
    std::size_t best_end = at;
    trie::cursor cursor(pieces_);
    for (std::size_t end = at; end < text.size() && cursor.step(static_cast<unsigned char>(text[end])); ++end)
      if (cursor.id() >= 0) best = cursor.id(), best_end = end + 1;
    known = best >= 0;
    if (known) out.push_back(best);
    at = best_end;
  }
  if (!known) {
    out.resize(start);
    if (options_.unknown >= 0) out.push_back(options_.unknown);
  }
}

}  // namespace flywheel::inline v0::text
