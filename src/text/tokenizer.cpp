#include "flywheel/text/tokenizer.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "bpe.hpp"
#include "flywheel/detail/try.hpp"
#include "pre_rules.hpp"
#include "spm.hpp"
#include "state.hpp"
#include "unigram.hpp"
#include "wordpiece.hpp"

namespace flywheel::inline v0::text {
namespace {

constexpr const char* model_key = "tokenizer.ggml.model";
constexpr const char* pre_key = "tokenizer.ggml.pre";

result<bool> flag(const io::metadata& meta, std::string_view key, bool otherwise) {
  if (!meta.contains(key)) return otherwise;
  return meta.boolean(key);
}

result<model_kind> read_kind(const io::metadata& meta) {
  if (!meta.contains(model_key)) return error{errc::not_found, "the file carries no vocabulary", model_key};
  FLYWHEEL_TRY(const std::string_view name, meta.string(model_key));
  if (name == "llama" || name == "gemma4") return model_kind::spm;
  if (name == "gpt2") return model_kind::bpe;
  if (name == "t5") return model_kind::unigram;
  if (name == "bert") return model_kind::wordpiece;
  if (name == "none" || name == "no_vocab")
    return error{errc::not_found, "the file says that it carries no vocabulary", model_key};
  return error{
      errc::unsupported,
      "vocabularies of kind '" + std::string(name) + "' are not supported; known are llama, gpt2, t5, bert, gemma4",
      model_key};
}

result<const pre_rule*> read_rule(const io::metadata& meta) {
  std::string_view name = "default";
  if (meta.contains(pre_key)) {
    FLYWHEEL_TRY(name, meta.string(pre_key));
  }
  if (name.empty()) name = "default";
  const pre_rule* rule = find_pre_rule(name);
  if (rule == nullptr)
    return error{errc::unsupported,
                 "the pre-tokenizer '" + std::string(name) + "' is not supported; a wrong one would give wrong tokens",
                 pre_key};
  return rule;
}

result<charsmap> read_charsmap(const io::metadata& meta) {
  constexpr const char* key = "tokenizer.ggml.precompiled_charsmap";
  const io::value* value = meta.find(key);
  if (value == nullptr) return charsmap{};
  const auto as_text = [](const auto& bytes) {
    return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  if (const auto* bytes = std::get_if<std::vector<std::uint8_t>>(value)) return charsmap::parse(as_text(*bytes));
  if (const auto* bytes = std::get_if<std::vector<std::int8_t>>(value)) return charsmap::parse(as_text(*bytes));
  return error{errc::malformed, "is not an array of bytes", key};
}

result<void> make_model(const io::metadata& meta, const pre_rule* rule, tokenizer::state& s) {
  switch (s.kind) {
    case model_kind::bpe: {
      FLYWHEEL_TRY(s.model, bpe_codec::make(meta, s.tokens, *rule, s.special.unknown));
      return {};
    }
    case model_kind::spm: {
      FLYWHEEL_TRY(s.space_prefix, flag(meta, "tokenizer.ggml.add_space_prefix", true));
      s.model = std::make_unique<spm_codec>(s.tokens, s.space_prefix, s.special.unknown);
      return {};
    }
    case model_kind::unigram: {
      if (!s.tokens.has_scores())
        return error{errc::not_found, "a unigram vocabulary needs scores", "tokenizer.ggml.scores"};
      for (token_id id = 0; id < s.tokens.size(); ++id)
        if (!std::isfinite(s.tokens.score(id)))
          return error{errc::malformed, "the score of token " + std::to_string(id) + " is not finite",
                       "tokenizer.ggml.scores"};
      unigram_options options;
      FLYWHEEL_TRY(options.space_prefix, flag(meta, "tokenizer.ggml.add_space_prefix", true));
      FLYWHEEL_TRY(options.merge_spaces, flag(meta, "tokenizer.ggml.remove_extra_whitespaces", false));
      options.unknown = s.special.unknown;
      s.space_prefix = options.space_prefix;
      FLYWHEEL_TRY(charsmap map, read_charsmap(meta));
      s.model = std::make_unique<unigram_codec>(s.tokens, std::move(map), options);
      return {};
    }
    case model_kind::wordpiece: {
      wordpiece_options options;
      FLYWHEEL_TRY(options.lowercase, flag(meta, "tokenizer.ggml.normalizer.lowercase", true));
      FLYWHEEL_TRY(options.strip_accents, flag(meta, "tokenizer.ggml.normalizer.strip_accents", options.lowercase));
      options.unknown = s.special.unknown;
      s.space_prefix = true;
      s.model = std::make_unique<wordpiece_codec>(s.tokens, options);
      return {};
    }
  }
  return error{errc::internal, "unknown kind of vocabulary", model_key};
}

}  // namespace

result<tokenizer> tokenizer::from_metadata(const io::metadata& meta) {
  return detail::guarded([&]() -> result<tokenizer> {
    auto s = std::make_shared<state>();
    FLYWHEEL_TRY(s->kind, read_kind(meta));
    const pre_rule* rule = nullptr;
    if (s->kind == model_kind::bpe) {
      FLYWHEEL_TRY(rule, read_rule(meta));
    }
    FLYWHEEL_TRY(s->tokens, vocabulary::read(meta));
    FLYWHEEL_TRY(s->special, read_special_tokens(meta, s->tokens, s->kind, rule != nullptr && rule->add_bos));
    FLYWHEEL_TRY(s->ending, read_ending_tokens(meta, s->tokens, s->special));
    s->matcher = special_matcher(meta, s->tokens);
    FLYWHEEL_CHECK(make_model(meta, rule, *s));
    return tokenizer(std::move(s));
  });
}

result<std::vector<token_id>> tokenizer::encode(std::string_view text, const encode_options& options) const {
  return detail::guarded([&]() -> result<std::vector<token_id>> {
    if (state_ == nullptr) return error{errc::invalid_argument, "the tokenizer has no vocabulary", "tokenizer"};
    if (text.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()) / 4)
      return error{errc::invalid_argument, "is longer than 512 MiB: encode it in parts", "text"};
    const special_tokens& special = state_->special;
    std::vector<segment> segments;
    state_->matcher.cut(text, options.parse_special, state_->tokens, segments);
    std::vector<token_id> ids;
    ids.reserve(text.size() / 4 + 8);
    if (options.add_special && special.add_bos) ids.push_back(special.bos);
    FLYWHEEL_CHECK(state_->model->encode(segments, text.size(), ids));
    if (options.add_special && special.add_eos)
      ids.push_back(state_->kind == model_kind::wordpiece ? special.separator : special.eos);
    return ids;
  });
}

result<std::string> tokenizer::decode(std::span<const token_id> ids, const decode_options& options) const {
  return detail::guarded([&]() -> result<std::string> {
    if (state_ == nullptr) return error{errc::invalid_argument, "the tokenizer has no vocabulary", "tokenizer"};
    std::string out;
    bool first = true;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (!state_->tokens.contains(ids[i]))
        return error{errc::invalid_argument,
                     "token " + std::to_string(ids[i]) + " at " + std::to_string(i) + " is outside the vocabulary of " +
                         std::to_string(state_->tokens.size()),
                     "ids"};
      if (state_->render(ids[i], options, first, out)) first = false;
    }
    if (state_->kind != model_kind::wordpiece) return out;
    std::string tidy;
    tidy.reserve(out.size());
    drain(out, true, false, true, tidy);
    return tidy;
  });
}

std::int32_t tokenizer::size() const noexcept { return state_ == nullptr ? 0 : state_->tokens.size(); }

std::string_view tokenizer::piece(token_id id) const noexcept {
  return state_ != nullptr && state_->tokens.contains(id) ? state_->tokens.piece(id) : std::string_view{};
}

token_kind tokenizer::kind(token_id id) const noexcept {
  return state_ != nullptr && state_->tokens.contains(id) ? state_->tokens.kind(id) : token_kind::unused;
}

token_id tokenizer::find(std::string_view piece) const noexcept {
  return state_ == nullptr ? -1 : state_->tokens.find(piece);
}

const special_tokens& tokenizer::special() const noexcept {
  static constexpr special_tokens none{};
  return state_ == nullptr ? none : state_->special;
}

bool tokenizer::ends_generation(token_id id) const noexcept {
  return state_ != nullptr && std::binary_search(state_->ending.begin(), state_->ending.end(), id);
}

std::string_view tokenizer::model_name() const noexcept {
  if (state_ == nullptr) return {};
  switch (state_->kind) {
    case model_kind::spm:
      return "spm-bpe";
    case model_kind::bpe:
      return "bpe";
    case model_kind::unigram:
      return "unigram";
    case model_kind::wordpiece:
      return "wordpiece";
  }
  return {};
}

}  // namespace flywheel::inline v0::text
