#include "spm.hpp"

#include <algorithm>
#include <functional>

#include "flywheel/detail/utf8.hpp"
#include "word_cache.hpp"

namespace flywheel::inline v0::text {
namespace {

constexpr std::uint32_t unresolved = no_merge;  // the id of a character before it is looked up

/// Bytes of the character that starts with `first`, going by that byte alone: invalid text is cut as other engines cut
/// it, and its bytes become byte tokens.
std::size_t nominal_length(char first) noexcept {
  const auto b = static_cast<unsigned char>(first);
  return b < 0xC0 ? 1 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
}

}  // namespace

spm_codec::spm_codec(const vocabulary& v, bool space_prefix, token_id unknown)
    : vocabulary_(v), space_prefix_(space_prefix), words_(v), fallback_(v, unknown) {
  std::vector<float> scores;
  scores.reserve(static_cast<std::size_t>(v.size()));
  for (token_id id = 0; id < v.size(); ++id) scores.push_back(v.score(id));
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  ranks_.reserve(static_cast<std::size_t>(v.size()));
  for (token_id id = 0; id < v.size(); ++id) {
    const auto place = std::lower_bound(scores.begin(), scores.end(), v.score(id), std::greater<>());
    ranks_.push_back(is_text_kind(v.kind(id)) ? static_cast<std::uint32_t>(place - scores.begin()) : no_merge);
  }
}

result<void> spm_codec::encode(const std::vector<segment>& segments, std::size_t text_bytes,
                               std::vector<token_id>& out) const {
  merger work;
  word_cache cache(text_bytes);
  std::string plain, first_word, escaped;
  bool prefix = space_prefix_;
  for (const segment& s : segments) {
    if (s.id >= 0) {
      out.push_back(s.id);
      prefix = space_prefix_;
      continue;
    }
    if (!detail::is_utf8(s.text)) {
      escaped.assign(prefix ? escaped_space : std::string_view{});
      append_escaped(s.text, escaped);
      encode_escaped(escaped, work, out);
      prefix = false;
      continue;
    }
    std::string_view text = s.text;
    if (text.find(escaped_space) != std::string_view::npos) {  // the same thing as a space to these models
      plain.clear();
      append_unescaped(text, plain);
      text = plain;
    }
    const auto word = [&](std::string_view w, const char* readable) {
      cache.append(w.data(), w.size(), readable, out, [&](std::vector<token_id>& ids) {
        escaped.clear();
        append_escaped(w, escaped);
        encode_escaped(escaped, work, ids);
      });
    };
    std::size_t at = 0;
    if (prefix) {
      at = words_.word_end(text, 0);
      first_word.assign(1, ' ').append(text.substr(0, at));
      word(first_word, first_word.data() + first_word.size());
      prefix = false;
    }
    while (at < text.size()) {
      const std::size_t end = words_.word_end(text, at);
      word(text.substr(at, end - at), text.data() + text.size());
      at = end;
    }
  }
  return {};
}

void spm_codec::encode_escaped(std::string_view text, merger& work, std::vector<token_id>& out) const {
  work.symbols.clear();
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = std::min(nominal_length(text[at]), text.size() - at);
    work.symbols.push_back({unresolved, static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(length)});
    at += length;
  }
  work.run(
      [&](const symbol& left, const symbol& right) -> merge {
        const token_id id = vocabulary_.find(text.substr(left.start, left.length + right.length));
        if (id < 0) return {};
        return {ranks_[static_cast<std::size_t>(id)], static_cast<std::uint32_t>(id)};
      },
      [](const merge& m) { return m.id; });
  for (const symbol& s : work.symbols) {
    token_id id = static_cast<token_id>(s.id);
    if (s.id == unresolved) {
      id = vocabulary_.find(text.substr(s.start, s.length));
      if (id >= 0 && !is_text_kind(vocabulary_.kind(id))) id = -1;
    }
    if (id >= 0)
      out.push_back(id);
    else
      fallback_.append(text.substr(s.start, s.length), out);
  }
}

}  // namespace flywheel::inline v0::text
