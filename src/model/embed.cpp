// model::embed and model::rerank: from texts to lists of tokens.
#include <algorithm>
#include <string>

#include "flywheel/detail/try.hpp"
#include "src/model/embedder.hpp"
#include "src/model/model_state.hpp"

namespace flywheel::inline v0 {
namespace {

using detail::embed_item;
using detail::embed_plan;

error no_model() { return {errc::invalid_argument, "the model handle is empty; open a model first", "model"}; }
error no_vocabulary() {
  return {errc::unsupported, "the model has no vocabulary; give token ids instead of text", "embed"};
}

std::vector<embed_item> items_of(std::span<const std::vector<token_id>> lists) {
  std::vector<embed_item> items;
  items.reserve(lists.size());
  for (const std::vector<token_id>& ids : lists) items.push_back({ids});
  return items;
}

/// A pair as encoders were trained on it: BERT's vocabularies have one separator between the texts, RoBERTa's two.
class pair_encoder {
 public:
  pair_encoder(const text::tokenizer& vocabulary, std::string_view query, const embed_plan& plan, bool truncate)
      : vocabulary_(vocabulary), plan_(plan), truncate_(truncate), query_(query) {}

  result<void> prepare() {
    const text::special_tokens& special = vocabulary_.special();
    separator_ = special.separator >= 0 ? special.separator : special.eos;
    FLYWHEEL_TRY(front_, vocabulary_.encode(query_));
    if (special.bos >= 0) front_.insert(front_.begin(), special.bos);
    if (separator_ >= 0) front_.insert(front_.end(), vocabulary_.model_name() == "wordpiece" ? 1 : 2, separator_);
    return {};
  }
  /// Where the second text begins.
  [[nodiscard]] std::size_t second() const { return front_.size(); }

  result<std::vector<token_id>> operator()(const std::string& document) const {
    FLYWHEEL_TRY(std::vector<token_id> tail, vocabulary_.encode(document));
    const std::size_t taken = front_.size() + (separator_ >= 0 ? 1 : 0);
    if (truncate_ && plan_.n_ctx > taken) tail.resize(std::min(tail.size(), plan_.n_ctx - taken));
    std::vector<token_id> ids(front_);
    ids.insert(ids.end(), tail.begin(), tail.end());
    if (separator_ >= 0) ids.push_back(separator_);
    return ids;
  }

 private:
  const text::tokenizer& vocabulary_;
  const embed_plan& plan_;
  bool truncate_;
  std::string_view query_;
  token_id separator_ = -1;
  std::vector<token_id> front_;
};

/// `text` with the first `name` replaced.
std::string replaced(std::string text, std::string_view name, std::string_view by) {
  if (const std::size_t found = text.find(name); found != std::string::npos) text.replace(found, name.size(), by);
  return text;
}

/// A pair as a question to a decoder. Truncation shortens the document by whole tokens of its own.
result<std::vector<token_id>> ask(const text::tokenizer& vocabulary, const std::string& form, std::string_view query,
                                  const std::string& document, const embed_plan& plan, bool truncate) {
  const auto encode = [&](std::string_view text) {
    const std::size_t at = form.find("{document}");  // the query must not name the document's place
    std::string whole = replaced(form.substr(0, at), "{query}", query) + std::string(text) +
                        replaced(form.substr(at + std::string_view("{document}").size()), "{query}", query);
    return vocabulary.encode(whole, {.parse_special = true});
  };
  FLYWHEEL_TRY(std::vector<token_id> ids, encode(document));
  if (!truncate || ids.size() <= plan.n_ctx) return ids;
  FLYWHEEL_TRY(std::vector<token_id> part, vocabulary.encode(document));
  while (ids.size() > plan.n_ctx && !part.empty()) {
    part.resize(part.size() - std::min(part.size(), ids.size() - plan.n_ctx));
    FLYWHEEL_TRY(const std::string shorter, vocabulary.decode(part));
    FLYWHEEL_TRY(ids, encode(shorter));
  }
  return ids;
}

constexpr const char* rerank_form = "tokenizer.chat_template.rerank";

/// The form a decoder's file gives for questions, with both places in it.
result<std::string> form_of(const io::metadata& meta) {
  if (!meta.contains(rerank_form))
    return error{errc::unsupported, "the model file does not say how a decoder is asked about a query and a document",
                 rerank_form};
  FLYWHEEL_TRY(const std::string_view form, meta.string(rerank_form));
  if (form.find("{query}") == std::string_view::npos || form.find("{document}") == std::string_view::npos)
    return error{errc::malformed, "has no place for {query} or {document}", rerank_form};
  return std::string(form);
}

}  // namespace

result<embeddings> model::embed(std::span<const std::string> texts, const embed_options& options) const {
  return detail::guarded([&]() -> result<embeddings> {
    if (!state_) return no_model();
    if (!state_->tokenizer) return no_vocabulary();
    FLYWHEEL_TRY(const embed_plan plan, detail::plan_embedding(*state_, options));
    std::vector<std::vector<token_id>> lists;
    lists.reserve(texts.size());
    for (const std::string& text : texts) {
      FLYWHEEL_TRY(std::vector<token_id> ids, state_->tokenizer.encode(text, {.add_special = true}));
      if (options.truncate && ids.size() > plan.n_ctx) {
        if (state_->tokenizer.special().add_eos) ids[plan.n_ctx - 1] = ids.back();
        ids.resize(plan.n_ctx);
      }
      lists.push_back(std::move(ids));
    }
    return detail::embed_items(*state_, items_of(lists), plan, options);
  });
}

result<embeddings> model::embed(std::span<const std::vector<token_id>> texts, const embed_options& options) const {
  return detail::guarded([&]() -> result<embeddings> {
    if (!state_) return no_model();
    FLYWHEEL_TRY(const embed_plan plan, detail::plan_embedding(*state_, options));
    std::vector<embed_item> items = items_of(texts);
    if (options.truncate)
      for (embed_item& item : items) item.ids = item.ids.first(std::min(item.ids.size(), plan.n_ctx));
    return detail::embed_items(*state_, items, plan, options);
  });
}

result<std::vector<float>> model::rerank(std::string_view query, std::span<const std::string> documents,
                                         const embed_options& options) const {
  return detail::guarded([&]() -> result<std::vector<float>> {
    if (!state_) return no_model();
    if (!state_->tokenizer) return no_vocabulary();
    embed_options ranking = options;
    ranking.pooling = pooling::rank;
    FLYWHEEL_TRY(const embed_plan plan, detail::plan_embedding(*state_, ranking));
    std::vector<std::vector<token_id>> lists;
    lists.reserve(documents.size());
    std::size_t second = ~std::size_t{0};
    if (const auto encoder = state_->engine->encoder()) {
      if (encoder->n_scores != 1)
        return error{errc::unsupported,
                     "the model sorts texts into " + std::to_string(encoder->n_scores) +
                         " classes; ranking needs a single score",
                     "rerank"};
      pair_encoder encode(state_->tokenizer, query, plan, options.truncate);
      FLYWHEEL_CHECK(encode.prepare());
      if (encoder->token_types > 1) second = encode.second();
      for (const std::string& document : documents) {
        FLYWHEEL_TRY(std::vector<token_id> ids, encode(document));
        lists.push_back(std::move(ids));
      }
    } else {
      FLYWHEEL_TRY(const std::string form, form_of(state_->file.metadata()));
      for (const std::string& document : documents) {
        FLYWHEEL_TRY(std::vector<token_id> ids, ask(state_->tokenizer, form, query, document, plan, options.truncate));
        lists.push_back(std::move(ids));
      }
    }
    std::vector<embed_item> items = items_of(lists);
    for (embed_item& item : items) item.second = second;
    FLYWHEEL_TRY(embeddings scores, detail::embed_items(*state_, items, plan, ranking));
    return std::move(scores.values);
  });
}

}  // namespace flywheel::inline v0
