#include "vocabulary.hpp"

#include <algorithm>
#include <bit>
#include <limits>

#include "flywheel/detail/try.hpp"
#include "hashing.hpp"
#include "merge_scores.hpp"

namespace flywheel::inline v0::text {
namespace {

constexpr const char* tokens_key = "tokenizer.ggml.tokens";
constexpr const char* scores_key = "tokenizer.ggml.scores";
constexpr const char* types_key = "tokenizer.ggml.token_type";

int hex_digit(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

error wrong_length(const char* key, std::size_t got, std::size_t expected) {
  return {
      errc::malformed,
      "has " + std::to_string(got) + " entries for " + std::to_string(expected) + " tokens; the vocabulary is damaged",
      key};
}

}  // namespace

int parse_byte_piece(std::string_view piece) noexcept {
  if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') return -1;
  const int high = hex_digit(piece[3]), low = hex_digit(piece[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

result<vocabulary> vocabulary::read(const io::metadata& meta) {
  FLYWHEEL_TRY(const auto tokens, meta.strings(tokens_key));
  const std::size_t n = tokens.size();
  if (n == 0) return error{errc::malformed, "the vocabulary is empty", tokens_key};
  if (n > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()) / 4)
    return error{errc::malformed, "the vocabulary has too many tokens", tokens_key};

  vocabulary v;
  std::uint64_t total = 0;
  for (const std::string& token : tokens) total += token.size();
  if (total > std::numeric_limits<std::uint32_t>::max())
    return error{errc::malformed, "the vocabulary's spellings are longer than 4 GiB", tokens_key};
  v.bytes_.reserve(static_cast<std::size_t>(total));
  v.offsets_.reserve(n + 1);
  v.offsets_.push_back(0);
  for (const std::string& token : tokens) {
    v.bytes_ += token;
    v.offsets_.push_back(static_cast<std::uint32_t>(v.bytes_.size()));
    v.longest_ = std::max(v.longest_, token.size());
  }

  if (meta.contains(scores_key)) {
    if (auto scores = meta.floats(scores_key)) {
      v.scores_ = *std::move(scores);
    } else {  // some writers store whole numbers
      auto whole = meta.integers(scores_key);
      if (!whole) return std::move(scores).error();
      v.scores_.assign(whole->begin(), whole->end());
    }
    if (v.scores_.size() != n) return wrong_length(scores_key, v.scores_.size(), n);
    if (std::any_of(v.scores_.begin(), v.scores_.end(), [](float s) { return s != s; }))
      return error{errc::malformed, "a score is not a number; the vocabulary is damaged", scores_key};
  }

  if (auto model = meta.string("tokenizer.ggml.model"); model && *model == "gemma4") {  // its scores are placeholders
    FLYWHEEL_TRY(const auto merges, meta.strings("tokenizer.ggml.merges"));
    v.scores_.resize(n);
    score_by_merges(merges, tokens, v.scores_);
  }

  v.kinds_.assign(n, token_kind::normal);
  if (meta.contains(types_key)) {
    FLYWHEEL_TRY(const auto types, meta.integers(types_key));
    if (types.size() != n) return wrong_length(types_key, types.size(), n);
    for (std::size_t i = 0; i < n; ++i) {
      if (types[i] < 0 || types[i] > 6)
        return error{errc::malformed,
                     "token " + std::to_string(i) + " has type " + std::to_string(types[i]) + ", known are 0 to 6",
                     types_key};
      v.kinds_[i] = types[i] == 0 ? token_kind::unused : static_cast<token_kind>(types[i]);
    }
  }
  FLYWHEEL_CHECK(v.index());
  return v;
}

result<void> vocabulary::index() {
  slots_.assign(std::bit_ceil(kinds_.size() * 2), slot{});
  seed_ = hash_seed(slots_.data());
  const std::size_t mask = slots_.size() - 1;
  for (token_id id = 0; id < size(); ++id) {
    const std::string_view spelling = piece(id);
    if (spelling.empty()) continue;  // placeholders: cannot be found
    const std::uint64_t h = hash_bytes(spelling, seed_);
    const auto tag = static_cast<std::uint32_t>(h >> 32);
    std::size_t i = static_cast<std::size_t>(h) & mask;
    for (; slots_[i].id >= 0; i = (i + 1) & mask) {
      if (slots_[i].hash == tag && piece(slots_[i].id) == spelling)
        return error{
            errc::malformed,
            "tokens " + std::to_string(slots_[i].id) + " and " + std::to_string(id) + " have the same spelling",
            tokens_key};
    }
    slots_[i] = {tag, id};
  }
  return {};
}

token_id vocabulary::find(std::string_view spelling) const noexcept {
  if (spelling.empty() || spelling.size() > longest_) return -1;
  const std::uint64_t h = hash_bytes(spelling, seed_);
  const auto tag = static_cast<std::uint32_t>(h >> 32);
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t i = static_cast<std::size_t>(h) & mask; slots_[i].id >= 0; i = (i + 1) & mask)
    if (slots_[i].hash == tag && piece(slots_[i].id) == spelling) return slots_[i].id;
  return -1;
}

void vocabulary::find_batch(std::span<const std::string_view> pieces, token_id* ids) const noexcept {
  // Each round touches what the round before asked the memory for.
  std::uint64_t hashes[batch_size];
  const std::size_t mask = slots_.size() - 1;
  const std::size_t n = std::min(pieces.size(), batch_size);
  for (std::size_t i = 0; i < n; ++i) {
    hashes[i] = hash_bytes(pieces[i], seed_);
    prefetch(&slots_[static_cast<std::size_t>(hashes[i]) & mask]);
  }
  for (std::size_t i = 0; i < n; ++i) {  // the first candidate, nearly always the right one
    std::size_t at = static_cast<std::size_t>(hashes[i]) & mask;
    while (slots_[at].id >= 0 && slots_[at].hash != static_cast<std::uint32_t>(hashes[i] >> 32)) at = (at + 1) & mask;
    ids[i] = slots_[at].id;
    if (ids[i] >= 0) prefetch(&offsets_[static_cast<std::size_t>(ids[i])]);
  }
  for (std::size_t i = 0; i < n; ++i)
    if (ids[i] >= 0) prefetch(piece(ids[i]).data());
  for (std::size_t i = 0; i < n; ++i)
    if (ids[i] >= 0 && piece(ids[i]) != pieces[i]) ids[i] = find(pieces[i]);
}

token_id vocabulary::byte_token(unsigned char byte) const noexcept {
  constexpr char digits[] = "0123456789ABCDEF";
  const char spelling[6] = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
  return find({spelling, 6});
}

}  // namespace flywheel::inline v0::text
