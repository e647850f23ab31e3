#include "special.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::text {
namespace {

std::string ggml_key(std::string_view name) { return "tokenizer.ggml." + std::string(name); }

/// `otherwise` when the key is missing, or when that default lies outside a small vocabulary.
result<token_id> read_id(const io::metadata& meta, const vocabulary& v, std::string_view name, token_id otherwise) {
  const std::string key = ggml_key(name);
  if (!meta.contains(key)) return v.contains(otherwise) ? otherwise : token_id{-1};
  FLYWHEEL_TRY(const std::int64_t id, meta.integer(key));
  if (id == -1 || id == std::numeric_limits<std::uint32_t>::max()) return token_id{-1};  // writers' spelling of "none"
  if (id < 0 || id >= v.size())
    return error{errc::malformed,
                 "token " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(v.size()), key};
  return static_cast<token_id>(id);
}

result<bool> read_flag(const io::metadata& meta, std::string_view name, bool otherwise) {
  const std::string key = ggml_key(name);
  if (!meta.contains(key)) return otherwise;
  return meta.boolean(key);
}

/// A spelling that means "stop", whatever type the file gives it, because no text contains it by chance; or one that
/// might be ordinary text and counts only as a control or user-defined token.
struct ending {
  std::string_view spelling;
  bool any_kind;
  bool turn = false;  // ends a turn of a conversation: a candidate for eot
};
constexpr ending endings[] = {
    {"<|eot_id|>", true, true},
    {"<|im_end|>", true, true},
    {"<|end|>", true, true},
    {"<end_of_turn>", true, true},
    {"<|endoftext|>", true, true},
    {"<|end_of_text|>", true, true},
    {"<EOT>", false, true},
    {"_<EOT>", false, true},
    {"[EOT]", false, true},
    {"<｜end▁of▁sentence｜>", true, true},
    {"<end_of_utterance>", true, true},
    {"<|eom_id|>", true},
    {"<|return|>", true},
    {"<|call|>", true},
    {"<|calls|>", true},
    {"<|flush|>", true},
    {"</s>", false},
    {"[EOS]", false},
    {"<eos>", false},
    {"<turn|>", true},
    {"<|tool_response>", true},
    {"<|fim_pad|>", true},
    {"<fim-pad>", false},
    {"<fim_pad>", false},
    {"<|fim_repo|>", true},
    {"<|repo_name|>", true},
    {"<fim-repo>", false},
    {"<reponame>", false},
    {"<|file_sep|>", true},
};

bool is_special(token_kind kind) noexcept { return kind == token_kind::control || kind == token_kind::user_defined; }

token_id find_ending(const vocabulary& v, const ending& e) noexcept {
  const token_id id = v.find(e.spelling);
  return id >= 0 && (e.any_kind || is_special(v.kind(id))) ? id : -1;
}

}  // namespace

result<special_tokens> read_special_tokens(const io::metadata& meta, const vocabulary& v, model_kind kind,
                                           bool add_bos) {
  special_tokens defaults;
  switch (kind) {
    case model_kind::spm:
      defaults = {.bos = 1, .eos = 2, .unknown = 0, .add_bos = true};
      break;
    case model_kind::bpe:
      defaults.add_bos = add_bos;
      break;
    case model_kind::unigram:
      defaults = {.eos = 1, .unknown = 2, .padding = 0, .add_eos = true};
      break;
    case model_kind::wordpiece:
      defaults = {
          .bos = 101, .unknown = 100, .padding = 0, .separator = 102, .mask = 103, .add_bos = true, .add_eos = true};
      break;
  }
  special_tokens s;
  FLYWHEEL_TRY(s.bos, read_id(meta, v, "bos_token_id", defaults.bos));
  if (kind == model_kind::wordpiece) {  // the classifier token comes first
    FLYWHEEL_TRY(s.bos, read_id(meta, v, "cls_token_id", s.bos));
  }
  FLYWHEEL_TRY(s.eos, read_id(meta, v, "eos_token_id", defaults.eos));
  FLYWHEEL_TRY(s.unknown, read_id(meta, v, "unknown_token_id", defaults.unknown));
  FLYWHEEL_TRY(s.padding, read_id(meta, v, "padding_token_id", defaults.padding));
  FLYWHEEL_TRY(s.mask, read_id(meta, v, "mask_token_id", defaults.mask));
  FLYWHEEL_TRY(s.separator, read_id(meta, v, "separator_token_id", defaults.separator));
  FLYWHEEL_TRY(s.separator, read_id(meta, v, "seperator_token_id", s.separator));  // the format's own spelling
  FLYWHEEL_TRY(s.eot, read_id(meta, v, "eot_token_id", -1));
  for (const ending& e : endings)
    if (s.eot < 0 && e.turn) s.eot = find_ending(v, e);

  FLYWHEEL_TRY(s.add_bos, read_flag(meta, "add_bos_token", defaults.add_bos));
  FLYWHEEL_TRY(s.add_eos, read_flag(meta, "add_eos_token", defaults.add_eos));
  if (kind == model_kind::wordpiece) s.add_bos = s.add_eos = true;  // always framed, as these models were trained
  // A flag that the file sets must be possible; one that is only our default gives way.
  const token_id last = kind == model_kind::wordpiece ? s.separator : s.eos;
  if (s.add_bos && s.bos < 0) {
    if (meta.contains(ggml_key("add_bos_token")))
      return error{errc::malformed, "is set, but the vocabulary names no bos token", ggml_key("add_bos_token")};
    s.add_bos = false;
  }
  if (s.add_eos && last < 0) {
    if (meta.contains(ggml_key("add_eos_token")))
      return error{errc::malformed, "is set, but the vocabulary names no eos token", ggml_key("add_eos_token")};
    s.add_eos = false;
  }
  return s;
}

result<std::vector<token_id>> read_ending_tokens(const io::metadata& meta, const vocabulary& v,
                                                 const special_tokens& special) {
  std::vector<token_id> ids{special.eos, special.eot};
  for (const std::string_view key : {"eom_token_id", "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id"}) {
    FLYWHEEL_TRY(const token_id id, read_id(meta, v, key, -1));
    ids.push_back(id);
  }
  for (const ending& e : endings) ids.push_back(find_ending(v, e));
  // In the harmony format <|end|> closes one message of several, <|return|> and <|call|> close the answer.
  const auto has = [&](std::string_view spelling) { return v.find(spelling) >= 0; };
  if ((has("<|return|>") && has("<|call|>")) || ((has("<|call|>") || has("<|calls|>")) && has("<|flush|>")))
    std::erase(ids, v.find("<|end|>"));
  // Where <|tool_response> ends a turn, </s> is an ordinary token.
  if (has("<|tool_response>") && special.eos != v.find("</s>")) std::erase(ids, v.find("</s>"));
  std::erase(ids, -1);
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

special_matcher::special_matcher(const io::metadata& meta, const vocabulary& v) {
  std::vector<std::pair<std::string_view, token_id>> entries;
  for (token_id id = 0; id < v.size(); ++id) {
    const token_kind kind = v.kind(id);
    const bool user = kind == token_kind::user_defined;
    if (!user && kind != token_kind::control && kind != token_kind::unknown) continue;
    const std::string_view spelling = v.piece(id);
    if (spelling.empty() || spelling.size() > trie::max_length) continue;
    entries.emplace_back(spelling, id);
    const auto first = static_cast<unsigned char>(spelling[0]);
    any_ = starts_all_[first] = true;
    if (user) any_user_ = starts_user_[first] = true;
  }

  // Which tokens swallow white space is not in the file; it follows from the model's family.
  const auto text_of = [&](std::string_view key) {
    auto value = meta.string(key);
    std::string s(value ? *value : std::string_view{});
    std::transform(s.begin(), s.end(), s.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    return s;
  };
  const std::string name = text_of("general.name"), architecture = text_of("general.architecture"),
                    pre = text_of("tokenizer.ggml.pre");
  const auto contains = [](const std::string& s, std::string_view part) { return s.find(part) != std::string::npos; };
  const auto strip_left = [&](std::string_view spelling) {
    if (const token_id id = v.find(spelling); id >= 0) strip_left_.push_back(id);
  };
  if (contains(pre, "jina-v2-") || architecture == "nomic-bert-moe" || architecture == "jina-bert-v3") {
    strip_left("<mask>");
  } else if (contains(name, "modern-bert")) {
    strip_left("[MASK]");
  } else if (contains(name, "phi-3") || contains(name, "phi3")) {
    for (const auto& [spelling, id] : entries)
      if (spelling != "<unk>" && spelling != "<s>" && spelling != "<|endoftext|>") strip_right_.push_back(id);
  }
  spellings_ = trie(std::move(entries));
}

void special_matcher::cut(std::string_view text, bool parse_special, const vocabulary& v,
                          std::vector<segment>& out) const {
  if (text.empty()) return;
  if (!(parse_special ? any_ : any_user_)) {
    out.push_back({text, -1});
    return;
  }
  const auto& starts = parse_special ? starts_all_ : starts_user_;
  const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  const auto contains = [](const std::vector<token_id>& ids, token_id id) {
    return std::binary_search(ids.begin(), ids.end(), id);
  };
  std::size_t plain = 0;  // where the current stretch of plain text began
  for (std::size_t i = 0; i < text.size();) {
    if (!starts[static_cast<unsigned char>(text[i])]) {
      ++i;
      continue;
    }
    token_id best = -1;
    std::size_t best_end = i;
    trie::cursor at(spellings_);
    for (std::size_t j = i; j < text.size() && at.step(static_cast<unsigned char>(text[j])); ++j) {
      const token_id id = at.id();
      if (id >= 0 && (parse_special || v.kind(id) == token_kind::user_defined)) best = id, best_end = j + 1;
    }
    if (best < 0) {
      ++i;
      continue;
    }
    std::size_t end = i;
    if (contains(strip_left_, best))
      while (end > plain && is_space(text[end - 1])) --end;
    if (end > plain) out.push_back({text.substr(plain, end - plain), -1});
    out.push_back({{}, best});
    i = best_end;
    if (contains(strip_right_, best))
      while (i < text.size() && is_space(text[i])) ++i;
    plain = i;
  }
  if (plain < text.size()) out.push_back({text.substr(plain), -1});
}

}  // namespace flywheel::inline v0::text
