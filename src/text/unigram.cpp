#include "unigram.hpp"

#include <algorithm>
#include <limits>

#include "flywheel/detail/utf8.hpp"
#include "word_cache.hpp"

namespace flywheel::inline v0::text {
namespace {

/// A character that no token covers costs this much more than the worst token (SentencePiece's kUnkPenalty).
constexpr double unknown_penalty = 10.0;

/// Runs of spaces become one, those at the ends vanish.
void merge_spaces(std::string& text) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < text.size(); ++i)
    if (text[i] != ' ' || (kept != 0 && text[kept - 1] != ' ')) text[kept++] = text[i];
  if (kept != 0 && text[kept - 1] == ' ') --kept;
  text.resize(kept);
}

}  // namespace

unigram_codec::unigram_codec(const vocabulary& v, charsmap map, const unigram_options& options)
    : vocabulary_(v), map_(std::move(map)), options_(options), words_(v), fallback_(v, options.unknown) {
  std::vector<std::pair<std::string_view, token_id>> entries;
  double worst = 0;
  bool first = true;
  for (token_id id = 0; id < v.size(); ++id) {
    const token_kind kind = v.kind(id);
    if (is_text_kind(kind)) entries.emplace_back(v.piece(id), id);
    if (kind == token_kind::normal) {
      worst = first ? v.score(id) : std::min(worst, static_cast<double>(v.score(id)));
      first = false;
    }
  }
  pieces_ = trie(std::move(entries));
  unknown_score_ = worst - unknown_penalty;
}

result<void> unigram_codec::encode(const std::vector<segment>& segments, std::size_t text_bytes,
                                   std::vector<token_id>& out) const {
  word_cache cache(text_bytes);
  std::vector<step> best;
  std::string plain, escaped;
  for (const segment& s : segments) {
    if (s.id >= 0) {
      out.push_back(s.id);
      continue;
    }
    plain.clear();
    escaped.clear();
    map_.normalize(s.text, escaped);
    append_unescaped(escaped, plain);
    if (options_.merge_spaces) merge_spaces(plain);
    if (plain.empty()) continue;
    if (options_.space_prefix) plain.insert(plain.begin(), ' ');
    const std::size_t start = out.size();
    for (std::size_t at = 0; at < plain.size();) {
      const std::size_t end = words_.word_end(plain, at);
      const std::string_view word(plain.data() + at, end - at);
      const std::size_t before = out.size();
      cache.append(word.data(), word.size(), plain.data() + plain.size(), out, [&](std::vector<token_id>& ids) {
        escaped.clear();
        append_escaped(word, escaped);
        encode_escaped(escaped, best, ids);
      });
      // Neighbouring unknown characters are one unknown token, also where two words meet.
      if (options_.unknown >= 0 && before > start && before < out.size() && out[before] == options_.unknown &&
          out[before - 1] == options_.unknown)
        out.erase(out.begin() + static_cast<std::ptrdiff_t>(before));
      at = end;
    }
  }
  return {};
}

void unigram_codec::encode_escaped(std::string_view text, std::vector<step>& best, std::vector<token_id>& out) const {
  constexpr double unreached = -std::numeric_limits<double>::infinity();
  best.assign(text.size() + 1, {unreached, 0, -1});
  best[0].score = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = std::max<std::size_t>(detail::utf8_length(text.substr(at)), 1);
    const double here = best[at].score;
    const auto from = static_cast<std::uint32_t>(at);
    bool covered = false;  // some token is exactly this character
    trie::cursor cursor(pieces_);
    for (std::size_t end = at; end < text.size() && cursor.step(static_cast<unsigned char>(text[end])); ++end) {
      const token_id id = cursor.id();
      if (id < 0) continue;
      covered = covered || end + 1 == at + length;
      // User-defined tokens are free, so that they win against any way to spell them.
      const double score =
          here + (vocabulary_.kind(id) == token_kind::user_defined ? 0.0 : static_cast<double>(vocabulary_.score(id)));
      if (score > best[end + 1].score) best[end + 1] = {score, from, id};
    }
    if (!covered && here + unknown_score_ > best[at + length].score)
      best[at + length] = {here + unknown_score_, from, -1};
    at += length;
  }

  const std::size_t start = out.size();
  bool after_unknown = false;
  for (std::size_t end = text.size(); end > 0;) {
    const step& last = best[end];
    const bool unknown = last.id < 0;
    if (!unknown) {
      out.push_back(last.id);
    } else if (fallback_.complete()) {
      const std::size_t before = out.size();
      fallback_.append(text.substr(last.from, end - last.from), out);
      std::reverse(out.begin() + static_cast<std::ptrdiff_t>(before), out.end());
    } else if (!after_unknown && options_.unknown >= 0) {
      out.push_back(options_.unknown);
    }
    after_unknown = unknown;
    end = last.from;
  }
  std::reverse(out.begin() + static_cast<std::ptrdiff_t>(start), out.end());
}

}  // namespace flywheel::inline v0::text
