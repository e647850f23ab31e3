#include "src/model/embedder.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "flywheel/detail/try.hpp"
#include "src/model/adapter_set.hpp"
#include "src/model/basis.hpp"
#include "src/model/kv_cache.hpp"
#include "src/model/model_state.hpp"
#include "src/model/session_state.hpp"

namespace flywheel::inline v0::detail {
namespace {

error invalid(std::string message, std::string where) {
  return {errc::invalid_argument, std::move(message), std::move(where)};
}
std::string text_number(std::size_t i) { return "text " + std::to_string(i); }

result<pooling> pooling_of(const model::state& m, pooling asked) {
  if (asked > pooling::rank) return invalid("is not one of pooling's values", "embed_options::pooling");
  if (asked != pooling::automatic) return asked;
  const std::string key = m.info.architecture + ".pooling_type";
  if (!m.file.metadata().contains(key)) return m.engine->encoder() ? pooling::mean : pooling::last;
  FLYWHEEL_TRY(const std::int64_t type, m.file.metadata().integer(key));
  constexpr pooling known[] = {pooling::none, pooling::mean, pooling::cls, pooling::last, pooling::rank};
  if (type < 0 || type >= std::int64_t{std::size(known)})
    return error{errc::malformed,
                 "the number " + std::to_string(type) + " names no pooling; choose one with embed_options::pooling",
                 key};
  return known[type];
}

/// Part of an item that is computed in one forward pass: all of it, unless it is long and the model causal.
struct piece {
  std::size_t item = 0, begin = 0, end = 0;
};

class embedder {
 public:
  embedder(const model::state& m, std::span<const embed_item> items, const embed_plan& plan,
           const embed_options& options)
      : m_(m), items_(items), plan_(plan), options_(options), encoder_(m.engine->encoder()) {}

  result<embeddings> run() {
    FLYWHEEL_CHECK(prepare());
    paced_progress progress(options_.control.progress, "embedding");
    std::uint64_t done = 0;
    for (std::size_t item = 0, begin = 0; item < items_.size();) {
      if (options_.control.stopped()) return error{errc::cancelled, "cancelled", {}};
      next_pieces(item, begin);
      FLYWHEEL_CHECK(forward());
      done += ids_.size();
      progress.report(done, total_);
    }
    return std::move(out_);
  }

 private:
  /// Whether the rows wanted are logits or scores, not hidden states.
  [[nodiscard]] bool ranks() const { return plan_.pooling == pooling::rank; }
  [[nodiscard]] bool every_row() const { return plan_.pooling == pooling::mean || plan_.pooling == pooling::none; }

  result<void> prepare() {
    const engine& e = *m_.engine;
    FLYWHEEL_TRY(adapters_, adapter_set::create(m_, options_.adapters));
    std::size_t longest = 0, rows = 0;
    out_.first_rows.reserve(items_.size() + 1);
    for (const embed_item& item : items_) {
      out_.first_rows.push_back(rows);
      rows += plan_.pooling == pooling::none ? item.ids.size() : 1;
      longest = std::max(longest, item.ids.size());
      total_ += item.ids.size();
    }
    out_.first_rows.push_back(rows);
    row_width_ = static_cast<std::size_t>(!ranks() ? e.n_embd() : encoder_ ? encoder_->n_scores : e.n_vocab());
    out_.width = ranks() && !encoder_ ? 1 : static_cast<std::int32_t>(row_width_);
    out_.values.resize(rows * static_cast<std::size_t>(out_.width));
    if (items_.empty()) return {};

    n_batch_ = std::min(static_cast<std::size_t>(options_.n_batch), static_cast<std::size_t>(total_));
    if (encoder_) n_batch_ = std::max(n_batch_, longest);
    // Each cached text has at least a page: short ones must not multiply the memory that n_batch stands for.
    const std::size_t pages = 2 * ((n_batch_ + kv_page_tokens - 1) / kv_page_tokens);
    most_pieces_ = std::min(items_.size(), encoder_ ? n_batch_ : pages);
    for (std::size_t i = 0; !encoder_ && i < most_pieces_; ++i) {
      FLYWHEEL_TRY(kv_cache cache, kv_cache::create(e.kv(), options_.kv_type, m_.ctx.memory()));
      caches_.push_back(std::move(cache));
    }
    if (plan_.pooling == pooling::mean) sum_.resize(row_width_);
    FLYWHEEL_TRY(work_, e.new_workspace(static_cast<std::int32_t>(n_batch_)));
    FLYWHEEL_CHECK(work_->fit(adapters_.width));
    FLYWHEEL_TRY(memory_, buffer::allocate((every_row() ? n_batch_ : most_pieces_) * row_width_ * sizeof(float),
                                           m_.ctx.memory()));
    return {};
  }

  /// Fills pieces_ from token `begin` of `item` on, and moves both.
  void next_pieces(std::size_t& item, std::size_t& begin) {
    pieces_.clear();
    std::size_t room = n_batch_;
    while (item < items_.size() && pieces_.size() < most_pieces_) {
      const std::size_t left = items_[item].ids.size() - begin;
      if (left > room && !pieces_.empty()) return;  // a text that fits a pass is not cut
      const std::size_t take = std::min(left, room);
      pieces_.push_back({item, begin, begin + take});
      room -= take;
      begin += take;
      if (take < left) return;
      ++item;
      begin = 0;
    }
  }

  result<void> forward() {
    chunk c;
    ids_.clear();
    types_.clear();
    parts_.clear();
    rows_.clear();
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      const piece& p = pieces_[i];
      const embed_item& item = items_[p.item];
      const auto first_row = static_cast<std::int32_t>(ids_.size());
      const auto last_row = first_row + static_cast<std::int32_t>(p.end - p.begin) - 1;
      ids_.insert(ids_.end(), item.ids.begin() + static_cast<std::ptrdiff_t>(p.begin),
                  item.ids.begin() + static_cast<std::ptrdiff_t>(p.end));
      for (std::size_t t = p.begin; t < p.end; ++t) types_.push_back(t < item.second ? 0 : 1);
      kv_cache* const cache = encoder_ ? nullptr : &caches_[i];
      if (cache) {
        if (p.begin == 0) cache->truncate(0);
        FLYWHEEL_CHECK(cache->reserve(static_cast<std::int64_t>(p.end)));
      }
      parts_.push_back({static_cast<std::int64_t>(p.end - p.begin), cache, static_cast<std::int64_t>(item.ids.size()),
                        adapters_.shares});
      if (every_row())
        for (std::int32_t r = first_row; r <= last_row; ++r) rows_.push_back(r);
      else if (takes_first() ? p.begin == 0 : p.end == item.ids.size())
        rows_.push_back(takes_first() ? first_row : last_row);
    }
    c.ids = ids_;
    c.token_types = types_;
    c.parts = parts_;
    c.output_rows = rows_;
    c.hidden = !ranks();
    c.stop = options_.control.stop;
    const std::span<float> out(reinterpret_cast<float*>(memory_.mutable_data()), rows_.size() * row_width_);
    FLYWHEEL_CHECK(m_.engine->forward(c, *work_, out));
    for (std::size_t i = 0; i < caches_.size() && i < pieces_.size(); ++i) {
      const bool complete = pieces_[i].end == items_[pieces_[i].item].ids.size();
      if (complete)
        caches_[i].truncate(0);
      else
        caches_[i].advance(static_cast<std::int64_t>(pieces_[i].end));
    }
    take(out);
    return {};
  }
  [[nodiscard]] bool takes_first() const { return plan_.pooling == pooling::cls || (ranks() && encoder_); }

  /// Pools the rows of the pieces.
  void take(std::span<const float> rows) {
    for (const piece& p : pieces_) {
      const std::size_t n = items_[p.item].ids.size();
      if (every_row()) {
        const std::span<const float> own = rows.first((p.end - p.begin) * row_width_);
        rows = rows.subspan(own.size());
        plan_.pooling == pooling::mean ? add(p, own, n) : keep_all(p, own);
      } else if (takes_first() ? p.begin == 0 : p.end == n) {
        const std::span<const float> row = rows.first(row_width_);
        rows = rows.subspan(row_width_);
        if (ranks() && !encoder_)
          *result_of(p.item) = yes_against_no(row);
        else
          store(row, 1, result_of(p.item));
      }
    }
  }
  [[nodiscard]] float* result_of(std::size_t item) {
    return out_.values.data() + out_.first_rows[item] * static_cast<std::size_t>(out_.width);
  }
  void add(const piece& p, std::span<const float> rows, std::size_t n) {
    if (p.begin == 0) std::fill(sum_.begin(), sum_.end(), 0.0);
    for (std::size_t at = 0; at < rows.size(); at += row_width_)
      for (std::size_t i = 0; i < row_width_; ++i) sum_[i] += static_cast<double>(rows[at + i]);
    if (p.end == n) store(sum_, 1 / static_cast<double>(n), result_of(p.item));
  }
  void keep_all(const piece& p, std::span<const float> rows) {
    for (std::size_t at = 0; at < rows.size(); at += row_width_)
      store(rows.subspan(at, row_width_), 1, result_of(p.item) + p.begin * row_width_ + at);
  }
  /// `row` times `scale`, or of length 1.
  template <class Row>
  void store(const Row& row, double scale, float* out) const {
    if (options_.normalize && !ranks()) {
      double squares = 0;
      for (const auto x : row) squares += static_cast<double>(x) * static_cast<double>(x);
      scale = squares > 0 ? 1 / std::sqrt(squares) : 0;
    }
    for (const auto x : row) *out++ = static_cast<float>(static_cast<double>(x) * scale);
  }
  /// softmax over the logits of "yes" and "no" alone.
  [[nodiscard]] float yes_against_no(std::span<const float> logits) const {
    const auto logit = [&](const char* word) {
      return static_cast<double>(logits[static_cast<std::size_t>(m_.tokenizer.find(word))]);
    };
    return static_cast<float>(1 / (1 + std::exp(logit("no") - logit("yes"))));
  }

  const model::state& m_;
  std::span<const embed_item> items_;
  embed_plan plan_;
  const embed_options& options_;
  std::optional<encoder_facts> encoder_;
  embeddings out_;
  std::uint64_t total_ = 0;    ///< Tokens of all items.
  std::size_t row_width_ = 0;  ///< Of what the engine gives.
  std::size_t n_batch_ = 0;
  std::size_t most_pieces_ = 0;
  std::vector<kv_cache> caches_;  ///< [most_pieces_], or none for encoders.
  adapter_set adapters_;
  std::unique_ptr<workspace> work_;
  buffer memory_;  ///< Rows of one forward pass.
  std::vector<piece> pieces_;
  std::vector<token_id> ids_;
  std::vector<std::int32_t> types_, rows_;
  std::vector<chunk_part> parts_;
  std::vector<double> sum_;
};

}  // namespace

result<embed_plan> plan_embedding(const model::state& m, const embed_options& options) {
  if (options.n_ctx < 0)
    return invalid("must be positive, or 0 for what the model was trained for", "embed_options::n_ctx");
  if (options.n_batch < 1) return invalid("must be positive", "embed_options::n_batch");
  embed_plan plan;
  FLYWHEEL_TRY(plan.pooling, pooling_of(m, options.pooling));
  const std::optional<encoder_facts> encoder = m.engine->encoder();
  if (plan.pooling == pooling::rank) {
    if (encoder ? encoder->n_scores == 0 : !m.tokenizer || m.tokenizer.find("yes") < 0 || m.tokenizer.find("no") < 0)
      return error{errc::unsupported,
                   encoder ? "the model has no classification head to rank with"
                           : "the model's vocabulary has no 'yes' and 'no' to rank with",
                   "pooling"};
  }
  if (plan.pooling != pooling::rank && m.file.metadata().contains(detail::rotated_key))
    return error{errc::unsupported,
                 "the model was rotated when it was quantized, so its hidden states are in another basis than the "
                 "original's; embed with a file that was not",
                 std::string(detail::rotated_key)};
  const std::int32_t trained = m.engine->n_ctx_train() > 0 ? m.engine->n_ctx_train() : default_n_ctx;
  std::int32_t n_ctx = options.n_ctx > 0 ? options.n_ctx : trained;
  if (encoder && encoder->max_positions > 0) n_ctx = std::min(n_ctx, encoder->max_positions);
  plan.n_ctx = static_cast<std::size_t>(n_ctx);
  return plan;
}

result<embeddings> embed_items(const model::state& m, std::span<const embed_item> items, const embed_plan& plan,
                               const embed_options& options) {
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (items[i].ids.empty()) return invalid("holds no tokens", text_number(i));
    for (const token_id id : items[i].ids)
      if (id < 0 || id >= m.engine->n_vocab())
        return invalid(
            "token " + std::to_string(id) + " is not in the vocabulary of " + std::to_string(m.engine->n_vocab()),
            text_number(i));
    if (items[i].ids.size() > plan.n_ctx)
      return error{errc::context_full,
                   "the context holds " + std::to_string(plan.n_ctx) + " tokens, the text has " +
                       std::to_string(items[i].ids.size()) + "; shorten it, or let it be truncated",
                   text_number(i)};
  }
  return embedder(m, items, plan, options).run();
}

}  // namespace flywheel::inline v0::detail
