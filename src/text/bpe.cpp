#include "bpe.hpp"

#include <algorithm>
#include <bit>
#include <span>
#include <unordered_map>

#include "byte_alphabet.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/detail/utf8.hpp"
#include "hashing.hpp"
#include "normalize.hpp"
#include "word_cache.hpp"

namespace flywheel::inline v0::text {
namespace {
constexpr const char* merges_key = "tokenizer.ggml.merges";
constexpr const char* compose_key = "tokenizer.ggml.normalizer.nfc";
}  // namespace

result<std::unique_ptr<codec>> bpe_codec::make(const io::metadata& meta, const vocabulary& v, const pre_rule& rule,
                                               token_id unknown) {
  std::unique_ptr<bpe_codec> made(new bpe_codec(v, rule, unknown));
  FLYWHEEL_TRY(made->pretokenizer_, pretokenizer::make(rule));
  if (meta.contains(compose_key)) {
    FLYWHEEL_TRY(made->compose_, meta.boolean(compose_key));
  }
  FLYWHEEL_CHECK(made->read_merges(meta));
  return std::unique_ptr<codec>(std::move(made));
}

std::size_t bpe_codec::home(std::uint64_t key) const noexcept {
  return static_cast<std::size_t>(fold_multiply(key ^ seed_, 0xD6E8FEB86659FD93ULL)) & (pairs_.size() - 1);
}

/// Where the pair is, or the empty slot where it would be.
std::size_t bpe_codec::slot_of(std::uint64_t key) const noexcept {
  std::size_t i = home(key);
  while (pairs_[i] != empty_slot && (pairs_[i] & ~std::uint64_t{most_merges}) != key) i = (i + 1) & (pairs_.size() - 1);
  return i;
}

std::uint32_t bpe_codec::rank_of(std::uint32_t left, std::uint32_t right) const noexcept {
  const std::uint64_t slot = pairs_[slot_of(key_of(left, right))];
  return slot == empty_slot ? no_merge : static_cast<std::uint32_t>(slot & most_merges);
}

result<void> bpe_codec::read_merges(const io::metadata& meta) {
  FLYWHEEL_TRY(const auto merges, meta.strings(merges_key));
  const error too_large{errc::unsupported, "the vocabulary has more than two million tokens or four million merges",
                        merges_key};
  if (merges.size() >= most_merges || static_cast<std::uint32_t>(vocabulary_.size()) >= most_symbols - 256)
    return too_large;

  // Well-formed vocabularies hold every part of every merge. Where one does not, the part still exists as a symbol.
  std::unordered_map<std::string, std::uint32_t> extra_ids;
  const auto size = static_cast<std::uint32_t>(vocabulary_.size());
  const auto symbol_of = [&](std::string_view spelling) {
    if (const token_id id = vocabulary_.find(spelling); id >= 0) return static_cast<std::uint32_t>(id);
    const auto [it, added] =
        extra_ids.try_emplace(std::string(spelling), size + static_cast<std::uint32_t>(extra_.size()));
    if (added) append_spelled(spelling, extra_.emplace_back());
    return it->second;
  };
  for (unsigned b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    char spelling[2];
    byte_symbol_[b] = symbol_of({spelling, spell_bytes({&byte, 1}, spelling)});
  }

  pairs_.assign(std::bit_ceil(merges.size() + merges.size() / 3 + 2), empty_slot);
  merged_.resize(merges.size());
  seed_ = hash_seed(pairs_.data());
  // Hundreds of thousands of merges, each with three look-ups in tables beyond the caches: in batches.
  constexpr std::size_t batch = vocabulary::batch_size / 3;
  std::array<std::string, batch> joined;
  std::array<std::string_view, 3 * batch> spellings;  // left, right, joined of each merge
  std::array<token_id, 3 * batch> ids{};
  for (std::size_t start = 0; start < merges.size(); start += batch) {
    const std::size_t n = std::min(batch, merges.size() - start);
    if (size + extra_.size() + 3 * batch > most_symbols) return too_large;
    for (std::size_t i = 0; i < n; ++i) {
      const std::string_view line = merges[start + i];
      const std::size_t gap = line.find(' ', 1);
      if (gap == std::string_view::npos || gap + 1 == line.size())
        return error{errc::malformed, "entry " + std::to_string(start + i) + " is not two parts with a space between",
                     merges_key};
      spellings[3 * i] = line.substr(0, gap);
      spellings[3 * i + 1] = line.substr(gap + 1);
      spellings[3 * i + 2] = joined[i].assign(spellings[3 * i]).append(spellings[3 * i + 1]);
    }
    vocabulary_.find_batch(std::span(spellings).first(3 * n), ids.data());
    const auto symbol_at = [&](std::size_t i) {
      return ids[i] >= 0 ? static_cast<std::uint32_t>(ids[i]) : symbol_of(spellings[i]);
    };
    for (std::size_t i = 0; i < n; ++i) prefetch(&pairs_[home(key_of(symbol_at(3 * i), symbol_at(3 * i + 1)))]);
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint64_t key = key_of(symbol_at(3 * i), symbol_at(3 * i + 1));
      std::uint64_t& slot = pairs_[slot_of(key)];
      if (slot != empty_slot) continue;  // repeated: the first rank counts
      slot = key | (start + i);
      merged_[start + i] = symbol_at(3 * i + 2);
    }
  }
  return {};
}

result<void> bpe_codec::encode(const std::vector<segment>& segments, std::size_t text_bytes,
                               std::vector<token_id>& out) const {
  regex_matcher matcher;
  merger work;
  word_cache cache(text_bytes);
  std::string repaired;
  for (const segment& s : segments) {
    if (s.id >= 0) {
      out.push_back(s.id);
      continue;
    }
    std::string_view text = s.text;
    if (!detail::is_utf8(text)) text = repaired = detail::repair_utf8(text);
    if (compose_) {
      FLYWHEEL_TRY(repaired, compose(text));
      text = repaired;
    }
    const char* const end = text.data() + text.size();
    FLYWHEEL_CHECK(pretokenizer_.split(text, matcher, [&](std::string_view word) {
      cache.append(word.data(), word.size(), end, out,
                   [&](std::vector<token_id>& ids) { encode_word(word, work, ids); });
    }));
  }
  return {};
}

token_id bpe_codec::find_word(std::string_view word) const noexcept {
  char spelling[256];
  if (word.size() > sizeof spelling / 2 || word.size() > vocabulary_.longest()) return -1;
  return vocabulary_.find({spelling, spell_bytes(word, spelling)});
}

void bpe_codec::encode_word(std::string_view word, merger& work, std::vector<token_id>& out) const {
  if (whole_words_) {
    if (const token_id id = find_word(word); id >= 0) {
      out.push_back(id);
      return;
    }
  }
  work.symbols.clear();
  for (const char c : word) work.symbols.push_back({byte_symbol_[static_cast<unsigned char>(c)], 0, 1});
  work.run(
      [&](const symbol& left, const symbol& right) {
        return merge{rank_of(left.id, right.id), 0};
      },
      [&](const merge& m) { return merged_[m.rank]; });
  for (const symbol& s : work.symbols) {
    if (s.id < static_cast<std::uint32_t>(vocabulary_.size()))
      out.push_back(static_cast<token_id>(s.id));
    else
      spell_out(s.id, out);
  }
}

/// A symbol without a token: its bytes, each as the token it has, or as the unknown token; else it is lost.
void bpe_codec::spell_out(std::uint32_t id, std::vector<token_id>& out) const {
  const auto size = static_cast<std::uint32_t>(vocabulary_.size());
  for (const char c : extra_[id - size]) {
    const std::uint32_t byte = byte_symbol_[static_cast<unsigned char>(c)];
    if (byte < size)
      out.push_back(static_cast<token_id>(byte));
    else if (unknown_ >= 0)
      out.push_back(unknown_);
  }
}

void bpe_codec::render(token_id id, std::string& out) const {
  const std::string_view piece = vocabulary_.piece(id);
  const token_kind kind = vocabulary_.kind(id);
  if (kind == token_kind::normal || kind == token_kind::unused) {
    append_spelled(piece, out);
  } else if (const int byte = kind == token_kind::byte ? parse_byte_piece(piece) : -1; byte >= 0) {
    out.push_back(static_cast<char>(byte));
  } else {
    out.append(piece);
  }
}

}  // namespace flywheel::inline v0::text
