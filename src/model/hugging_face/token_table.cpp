#include "src/model/hugging_face/token_table.hpp"

#include <algorithm>
#include <utility>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

constexpr auto number_of = [](text::token_kind kind) { return static_cast<std::int32_t>(kind); };

/// Control tokens that some publishers do not call special.
bool looks_special(std::string_view token) noexcept {
  constexpr std::string_view known[] = {"<pad>", "<mask>", "<2mass>", "[@BOS@]"};
  const auto between = [&](std::string_view open, std::string_view close) {
    return token.size() >= open.size() + close.size() && token.starts_with(open) && token.ends_with(close);
  };
  return std::find(std::begin(known), std::end(known), token) != std::end(known) || between("<|", "|>") ||
         between("<｜", "｜>") || between("<unused", ">");
}

}  // namespace

token_table::token_table(std::int64_t rows)
    : tokens(static_cast<std::size_t>(rows)),
      kinds(tokens.size(), number_of(text::token_kind::unused)),
      scores(tokens.size(), -10000.0F) {
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = "[PAD" + std::to_string(i) + "]";
}

result<void> token_table::set(std::int64_t id, std::string token, text::token_kind kind, float score,
                              const std::string& where) {
  if (id < 0 || id >= size())
    return error{
        errc::malformed,
        "token " + std::to_string(id) + " has no row in the embedding table, which has " + std::to_string(size()),
        where};
  const auto i = static_cast<std::size_t>(id);
  tokens[i] = std::move(token);
  kinds[i] = number_of(kind);
  scores[i] = score;
  return {};
}

void token_table::add_special(std::int64_t id, std::string token, bool special) {
  if (id < 0 || id >= size()) return;
  const auto i = static_cast<std::size_t>(id);
  const bool control = special || looks_special(token);
  if (!control)
    for (std::size_t at = 0; (at = token.find(space_mark, at)) != token.npos;)
      token.replace(at, space_mark.size(), " ");
  if (kinds[i] != number_of(text::token_kind::unknown))
    kinds[i] = number_of(control ? text::token_kind::control : text::token_kind::user_defined);
  tokens[i] = std::move(token);
  scores[i] = -1000.0F;
}

std::int64_t token_table::find(std::string_view token) const noexcept {
  const auto found = std::find(tokens.begin(), tokens.end(), token);
  return found == tokens.end() ? -1 : found - tokens.begin();
}

void mark_words(token_table& table) {
  for (std::size_t i = 0; i < table.tokens.size(); ++i) {
    std::string& token = table.tokens[i];
    if (table.kinds[i] == number_of(text::token_kind::control)) continue;
    if (token.starts_with("##"))
      token.erase(0, 2);
    else
      token.insert(0, space_mark);
  }
}

result<read_vocabulary> read_vocab_txt(std::string_view text, const std::string& where, std::int64_t rows) {
  read_vocabulary v{.table = token_table(rows), .model = "bert"};
  for (std::int64_t id = 0; !text.empty(); ++id) {
    const std::size_t length = std::min(text.find('\n'), text.size());
    std::string_view token = text.substr(0, length);
    text.remove_prefix(std::min(length + 1, text.size()));
    if (token.ends_with('\r')) token.remove_suffix(1);
    const bool control =
        token.size() > 2 && token.front() == '[' && token.back() == ']' && !token.starts_with("[unused");
    FLYWHEEL_CHECK(
        v.table.set(id, std::string(token), control ? text::token_kind::control : text::token_kind::normal, 0, where));
  }
  mark_words(v.table);
  for (const auto& [role, token] : {std::pair{"cls_token", "[CLS]"},
                                    {"sep_token", "[SEP]"},
                                    {"unk_token", "[UNK]"},
                                    {"pad_token", "[PAD]"},
                                    {"mask_token", "[MASK]"}})
    v.special[role] = token;
  return v;
}

}  // namespace flywheel::inline v0::hugging_face
