// tokenizer.json, the format of the `tokenizers` library.
#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/io/reading.hpp"
#include "src/model/hugging_face/token_table.hpp"
#include "src/text/merge_scores.hpp"
#include "src/text/vocabulary.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

constexpr const char* file_name = "tokenizer.json";

/// The document without what is long in it, which is kept as lists: a vocabulary has hundreds of thousands of entries.
struct parsed_tokenizer {
  json document;
  std::vector<std::pair<std::string, double>> vocab;  ///< Token and id; of Unigram: token and score, in order of ids.
  std::vector<std::string> merges;                    ///< "left right"
};

/// A merge as GGUF spells it: parts divided by a space, so that a space in a part is what byte-level BPE writes for it.
std::string merge_of(const std::string& left, const std::string& right) {
  std::string merge;
  for (const std::string* part : {&left, &right}) {
    if (part == &right) merge += ' ';
    for (const char c : *part) c == ' ' ? merge += "\xC4\xA0" : merge += c;
  }
  return merge;
}

result<parsed_tokenizer> parse(const folder& from) {
  parsed_tokenizer out;
  std::string section, part, token;  // "model", "vocab", and the token whose id comes next
  const auto keep = [&](int depth, json::parse_event_t event, json& parsed) {
    using kind = json::parse_event_t;
    if (event == kind::key) {
      std::string& name = depth == 1 ? section : depth == 2 ? part : token;
      if (depth <= 3) name = parsed.get<std::string>();
      return true;
    }
    if (depth != 3 || section != "model" || (part != "vocab" && part != "merges")) return true;
    if (event != kind::value && event != kind::array_end) return true;
    const bool pair = parsed.is_array() && parsed.size() == 2 && parsed[0].is_string();
    if (part == "vocab") {
      if (parsed.is_number_integer())
        out.vocab.emplace_back(token, parsed.get<double>());
      else if (pair && parsed[1].is_number())
        out.vocab.emplace_back(parsed[0].get<std::string>(), parsed[1].get<double>());
    } else if (parsed.is_string()) {
      out.merges.push_back(parsed.get<std::string>());
    } else if (pair && parsed[1].is_string()) {
      out.merges.push_back(merge_of(parsed[0].get<std::string>(), parsed[1].get<std::string>()));
    }
    return false;
  };
  FLYWHEEL_TRY(out.document, from.read_json(file_name, keep));
  return out;
}

/// Calls f for a normalizer or pre-tokenizer, or for each of a sequence.
template <class F>
void for_each_part(const json& part, F&& f) {
  if (text_of(member(part, "type")) != "Sequence") return f(part);
  for (const char* list : {"normalizers", "pretokenizers", "decoders"})
    for (const json& inner : member(part, list)) for_each_part(inner, f);
}

bool has_part(const json& part, std::string_view type) {
  bool found = false;
  for_each_part(part, [&](const json& p) { found = found || text_of(member(p, "type")) == type; });
  return found;
}

/// Whether a SentencePiece vocabulary puts a space in front of the text.
bool adds_space(const json& document) {
  bool adds = has_part(member(document, "normalizer"), "Prepend");
  for_each_part(member(document, "pre_tokenizer"), [&](const json& p) {
    if (text_of(member(p, "type")) != "Metaspace") return;
    const std::string_view scheme = text_of(member(p, "prepend_scheme"));
    adds = scheme.empty() ? member(p, "add_prefix_space") != json(false) : scheme != "never";
  });
  return adds;
}

struct reader {
  const parsed_tokenizer& from;
  const json& document;
  const json& model;
  const std::string& where;
  read_vocabulary& out;

  [[nodiscard]] error refuse(std::string message) const { return {errc::unsupported, std::move(message), where}; }

  result<void> ids() {
    for (const auto& [token, id] : from.vocab) {
      if (id != std::floor(id) || std::fabs(id) > 1e15)
        return error{errc::malformed, "an id is no whole number", where};
      const bool byte = text::parse_byte_piece(token) >= 0 && out.model != "gpt2" && out.model != "bert";
      FLYWHEEL_CHECK(out.table.set(static_cast<std::int64_t>(id), token,
                                   byte ? text::token_kind::byte : text::token_kind::normal, 0, where));
    }
    return {};
  }

  void unknown_token(std::int64_t id) {
    if (id < 0 || id >= out.table.size()) return;
    const auto i = static_cast<std::size_t>(id);
    out.table.kinds[i] = static_cast<std::int32_t>(text::token_kind::unknown);
    out.special["unk_token"] = out.table.tokens[i];
  }

  result<void> byte_level() {
    out.model = "gpt2";
    std::optional<error> fault;
    for_each_part(member(document, "normalizer"), [&](const json& p) {
      const std::string_view type = text_of(member(p, "type"));
      if (type == "NFC")
        out.keys.set("tokenizer.ggml.normalizer.nfc", true);
      else if (!p.is_null() && type != "Sequence")
        fault = refuse("unsupported normalizer " + io::detail::in_quotes(type) + " of a byte-level vocabulary");
    });
    if (fault) return *fault;
    FLYWHEEL_TRY(std::string pre, pre_tokenizer_name(member(document, "pre_tokenizer"),
                                                     member(model, "ignore_merges") == json(true), where));
    out.keys.set("tokenizer.ggml.pre", std::move(pre));
    out.keys.set("tokenizer.ggml.merges", from.merges);
    return ids();
  }

  result<void> sentencepiece_bpe() {
    out.model = "llama";
    out.scored = true;
    out.keys.set("tokenizer.ggml.add_space_prefix", adds_space(document));
    FLYWHEEL_CHECK(ids());
    text::score_by_merges(from.merges, out.table.tokens, out.table.scores);
    out.keys.set("tokenizer.ggml.merges", from.merges);
    return {};
  }

  result<void> unigram() {
    out.model = "t5";
    out.scored = true;
    std::int64_t id = 0;
    for (const auto& [token, score] : from.vocab)
      FLYWHEEL_CHECK(out.table.set(
          id++, token, text::parse_byte_piece(token) >= 0 ? text::token_kind::byte : text::token_kind::normal,
          static_cast<float>(score), where));
    if (const json& unknown = member(model, "unk_id"); unknown.is_number_integer())
      unknown_token(unknown.get<std::int64_t>());
    out.keys.set("tokenizer.ggml.add_space_prefix", adds_space(document));
    bool merges_spaces = false;
    std::optional<error> fault;
    for_each_part(member(document, "normalizer"), [&](const json& p) {
      const std::string_view type = text_of(member(p, "type"));
      if (type == "Precompiled") {
        auto map = from_base64(text_of(member(p, "precompiled_charsmap")));
        if (!map) fault = error{errc::malformed, "the precompiled_charsmap is not base64", where};
        if (map && !map->empty()) out.keys.set("tokenizer.ggml.precompiled_charsmap", *std::move(map));
      }
      merges_spaces = merges_spaces || type == "Replace";  // {"Regex": " {2,}"} by one
    });
    if (fault) return *fault;
    out.keys.set("tokenizer.ggml.remove_extra_whitespaces",
                 merges_spaces || has_part(member(document, "pre_tokenizer"), "WhitespaceSplit"));
    return {};
  }

  result<void> wordpiece() {
    out.model = "bert";
    for_each_part(member(document, "normalizer"), [&](const json& p) {
      const std::string_view type = text_of(member(p, "type"));
      if (type == "Lowercase") out.keys.set("tokenizer.ggml.normalizer.lowercase", true);
      if (type != "BertNormalizer") return;
      const json& accents = member(p, "strip_accents");  // null: as lowercase
      out.keys.set("tokenizer.ggml.normalizer.lowercase", member(p, "lowercase") != json(false));
      if (accents.is_boolean()) out.keys.set("tokenizer.ggml.normalizer.strip_accents", accents.get<bool>());
    });
    if (!out.keys.contains("tokenizer.ggml.normalizer.lowercase"))
      out.keys.set("tokenizer.ggml.normalizer.lowercase", false);
    const std::string_view prefix = text_of(member(model, "continuing_subword_prefix"));
    if (!prefix.empty() && prefix != "##") return refuse("unsupported continuing_subword_prefix; known is ##");
    out.special["unk_token"] = std::string(text_of(member(model, "unk_token")));
    return ids();
  }

  static std::optional<std::vector<std::uint8_t>> from_base64(std::string_view text) {
    std::vector<std::uint8_t> bytes;
    std::uint32_t bits = 0;
    unsigned count = 0;
    while (text.ends_with('=')) text.remove_suffix(1);
    for (const char c : text) {
      constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
      const std::size_t digit = alphabet.find(c);
      if (digit == alphabet.npos) return std::nullopt;
      bits = bits << 6 | static_cast<std::uint32_t>(digit);
      if (++count % 4 != 1) bytes.push_back(static_cast<std::uint8_t>(bits >> (6 - 2 * ((count - 1) % 4))));
    }
    return bytes;
  }

  /// Tokens beside the model's, and which of them frame a text.
  result<void> added_tokens() {
    for (const json& added : member(document, "added_tokens")) {
      const json& id = member(added, "id");
      const std::string_view token = text_of(added);
      if (!id.is_number_integer() || token.empty())
        return error{errc::malformed, "an added token has no id or no content", where};
      out.table.add_special(id.get<std::int64_t>(), std::string(token), member(added, "special") == json(true));
    }
    return {};
  }

  /// TemplateProcessing: the special tokens before and after a text. RobertaProcessing and BertProcessing: both. A file
  /// without any says nothing: the first Llama 3 files are such, and want bos as their rule has it.
  void frame() {
    const json& all = member(document, "post_processor");
    const json& sequence = member(all, "processors");
    const auto one = [&](const json& p) {
      const std::string_view type = text_of(member(p, "type"));
      if (type == "RobertaProcessing" || type == "BertProcessing") {
        const auto name = [&](const char* role) {
          const json& pair = member(p, role);
          return std::string(pair.is_array() && !pair.empty() ? text_of(pair.front()) : std::string_view{});
        };
        set_frame(name("cls"), name("sep"));
      }
      const json& single = member(p, "single");
      if (type != "TemplateProcessing" || !single.is_array() || single.empty()) return;
      const auto token = [](const json& item) {
        return std::string(text_of(member(member(item, "SpecialToken"), "id")));
      };
      set_frame(token(single.front()), single.size() > 1 ? token(single.back()) : std::string());
    };
    if (sequence.is_array())
      for (const json& p : sequence) one(p);
    else
      one(all);
  }
  void set_frame(std::string first, std::string last) {
    out.keys.set("tokenizer.ggml.add_bos_token", !first.empty());
    out.keys.set("tokenizer.ggml.add_eos_token", !last.empty());
    if (!first.empty()) out.special["first"] = std::move(first);
    if (!last.empty()) out.special["last"] = std::move(last);
  }
};

}  // namespace

result<read_vocabulary> read_tokenizer_json(const folder& from, std::int64_t rows) {
  FLYWHEEL_TRY(const parsed_tokenizer parsed, parse(from));
  read_vocabulary out{.table = token_table(rows)};
  const std::string where = from.where(file_name);
  const json& model = member(parsed.document, "model");
  reader r{parsed, parsed.document, model, where, out};
  if (parsed.vocab.empty()) return error{errc::malformed, "the file has no vocabulary", where};

  const std::string_view type = text_of(member(model, "type"));
  const json& decoder = member(parsed.document, "decoder");
  const bool bytes = has_part(member(parsed.document, "pre_tokenizer"), "ByteLevel") || has_part(decoder, "ByteLevel");
  if ((type == "BPE" || type.empty()) && !parsed.merges.empty()) {
    if (bytes)
      FLYWHEEL_CHECK(r.byte_level());
    else if (member(model, "byte_fallback") == json(true))
      FLYWHEEL_CHECK(r.sentencepiece_bpe());
    else
      return r.refuse("unsupported: a BPE vocabulary that is neither byte-level nor falls back to bytes");
  } else if (type == "Unigram") {
    FLYWHEEL_CHECK(r.unigram());
  } else if (type == "WordPiece") {
    FLYWHEEL_CHECK(r.wordpiece());
  } else {
    return r.refuse("unsupported kind of vocabulary " + io::detail::in_quotes(type) +
                    "; known are BPE, Unigram and WordPiece");
  }
  FLYWHEEL_CHECK(r.added_tokens());
  if (out.model == "bert") mark_words(out.table);
  if (out.model == "llama") r.unknown_token(out.table.find(text_of(member(model, "unk_token"))));
  r.frame();
  return out;
}

}  // namespace flywheel::inline v0::hugging_face
