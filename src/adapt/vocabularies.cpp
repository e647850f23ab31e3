#include "src/adapt/vocabularies.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <set>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/text/tokenizer.hpp"
#include "src/io/computed_tensors.hpp"
#include "src/io/reading.hpp"

namespace flywheel::inline v0::adapt {
namespace {

using io::detail::in_quotes;
using text::token_kind;

constexpr std::string_view embeddings = "token_embd.weight", head = "output.weight";
/// Tensors with a row per token.
constexpr std::array<std::string_view, 3> by_token = {embeddings, head, "per_layer_token_embd.weight"};

std::size_t index_of(std::int64_t i) noexcept { return static_cast<std::size_t>(i); }

/// A vocabulary as metadata have it.
struct token_list {
  std::vector<std::string> tokens;
  std::vector<float> scores;        ///< Empty: none.
  std::vector<std::int32_t> kinds;  ///< Empty: none.
  std::vector<std::string> merges;  ///< "left right"
  std::unordered_map<std::string, std::int64_t> ids;

  [[nodiscard]] std::int32_t kind(std::size_t id) const {
    return id < kinds.size() ? kinds[id] : static_cast<std::int32_t>(token_kind::normal);
  }
  [[nodiscard]] std::int64_t find(const std::string& token) const {
    const auto found = ids.find(token);
    return found == ids.end() ? -1 : found->second;
  }
  void add(const std::string& token, float score, token_kind kind) {
    if (kinds.empty()) kinds.assign(tokens.size(), static_cast<std::int32_t>(token_kind::normal));
    ids.emplace(token, static_cast<std::int64_t>(tokens.size()));
    tokens.push_back(token);
    kinds.push_back(static_cast<std::int32_t>(kind));
    if (!scores.empty()) scores.push_back(score);
  }
};

result<token_list> read_tokens(const io::metadata& meta) {
  token_list made;
  const auto strings = [&](std::string_view key, std::vector<std::string>& into) -> result<void> {
    if (!meta.contains(key)) return {};
    FLYWHEEL_TRY(const auto read, meta.strings(key));
    into.assign(read.begin(), read.end());
    return {};
  };
  FLYWHEEL_CHECK(strings("tokenizer.ggml.tokens", made.tokens));
  FLYWHEEL_CHECK(strings("tokenizer.ggml.merges", made.merges));
  if (meta.contains("tokenizer.ggml.scores")) {
    FLYWHEEL_TRY(made.scores, meta.floats("tokenizer.ggml.scores"));
  }
  if (meta.contains("tokenizer.ggml.token_type")) {
    FLYWHEEL_TRY(const auto kinds, meta.integers("tokenizer.ggml.token_type"));
    for (const std::int64_t k : kinds) made.kinds.push_back(static_cast<std::int32_t>(k));
  }
  if ((!made.scores.empty() && made.scores.size() != made.tokens.size()) ||
      (!made.kinds.empty() && made.kinds.size() != made.tokens.size()))
    return error{errc::malformed, "scores or kinds of tokens are not as many as tokens", "tokenizer.ggml.tokens"};
  for (std::size_t i = 0; i < made.tokens.size(); ++i) made.ids.emplace(made.tokens[i], static_cast<std::int64_t>(i));
  return made;
}

std::string kind_of_vocabulary(const io::archive& model) {
  const auto kind = model.metadata().string("tokenizer.ggml.model");
  return kind ? std::string(*kind) : std::string();
}

std::string file_of(const io::archive& model) { return model.path().string(); }

/// A row of a model's tensor.
struct row_place {
  std::size_t model = 0;
  std::int64_t row = 0;
};

/// What rows become that a model has not, for one tensor of all models.
struct row_fills {
  std::vector<io::archive> models;
  std::vector<const io::tensor_info*> tensors;  ///< [models]; null: the model has no vocabulary of its own.
  std::vector<std::vector<row_place>> means;    ///< Each the mean of these rows; of none: 0.
};

/// The rows of an embedding in another order, with rows of other models between them.
class aligned_rows final : public io::computed_tensor {
 public:
  /// `rows`: a row of the model, or -1 - i for means[i]; behind them, `padding` rows that are the mean of all those.
  aligned_rows(io::archive own, io::tensor_info from, std::vector<std::int64_t> rows,
               std::shared_ptr<const row_fills> fills)
      : own_(std::move(own)), from_(std::move(from)), rows_(std::move(rows)), fills_(std::move(fills)) {}

  [[nodiscard]] result<void> rows(std::int64_t first, std::int64_t count, std::byte* out) const override {
    const std::size_t stride = index_of(from_.dims.cols());
    std::vector<float> values(index_of(count) * stride);
    FLYWHEEL_CHECK(fill(first, count, values));
    std::memcpy(out, values.data(), values.size() * sizeof(float));
    return {};
  }

  void release() const noexcept override { own_.release(from_); }

 private:
  [[nodiscard]] result<void> fill(std::int64_t first, std::int64_t count, std::span<float> values) const {
    const std::size_t stride = index_of(from_.dims.cols());
    for (std::int64_t r = first; r < first + count;) {
      const std::span<float> left = values.subspan(index_of(r - first) * stride);
      const auto known = static_cast<std::int64_t>(rows_.size());
      if (r >= known) {
        FLYWHEEL_CHECK(padding_row(left.first(stride)));
        ++r;
        continue;
      }
      const std::int64_t own = rows_[index_of(r)];
      if (own < 0) {
        FLYWHEEL_CHECK(mean_row(fills_->means[index_of(-1 - own)], left.first(stride)));
        ++r;
        continue;
      }
      std::int64_t run = 1;  // neighbours here that are neighbours there
      while (r + run < std::min(known, first + count) && rows_[index_of(r + run)] == own + run) ++run;
      FLYWHEEL_CHECK(read_rows(own_, from_, own, run, left.first(index_of(run) * stride)));
      r += run;
    }
    return {};
  }

  [[nodiscard]] static result<void> read_rows(const io::archive& from, const io::tensor_info& tensor,
                                              std::int64_t first, std::int64_t count, std::span<float> out) {
    const std::size_t stride = row_bytes(tensor.type, tensor.dims.cols());
    std::vector<std::byte> stored(index_of(count) * stride);
    FLYWHEEL_CHECK(from.read(tensor, static_cast<std::uint64_t>(first) * stride, stored));
    return formats::decode(tensor_view(tensor.type, {count, tensor.dims.cols()}, stored.data()), out);
  }

  [[nodiscard]] result<void> mean_row(const std::vector<row_place>& of, std::span<float> out) const {
    std::fill(out.begin(), out.end(), 0.0F);
    std::vector<float> one(out.size());
    for (const row_place& place : of) {
      FLYWHEEL_CHECK(read_rows(fills_->models[place.model], *fills_->tensors[place.model], place.row, 1, one));
      for (std::size_t c = 0; c < out.size(); ++c) out[c] += one[c];
    }
    for (float& x : out) x /= static_cast<float>(std::max<std::size_t>(1, of.size()));
    return {};
  }

  [[nodiscard]] result<void> padding_row(std::span<float> out) const {
    const std::lock_guard lock(mutex_);
    if (padding_.empty()) {
      constexpr std::int64_t at_once = 64;
      std::vector<double> sums(out.size());
      std::vector<float> values(out.size() * index_of(at_once));
      const auto known = static_cast<std::int64_t>(rows_.size());
      for (std::int64_t r = 0; r < known; r += at_once) {
        const std::int64_t n = std::min(at_once, known - r);
        FLYWHEEL_CHECK(fill(r, n, values));
        for (std::size_t i = 0; i < out.size() * index_of(n); ++i)
          sums[i % out.size()] += static_cast<double>(values[i]);
      }
      for (const double sum : sums) padding_.push_back(static_cast<float>(sum / static_cast<double>(known)));
    }
    std::copy(padding_.begin(), padding_.end(), out.begin());
    return {};
  }

  io::archive own_;
  io::tensor_info from_;
  std::vector<std::int64_t> rows_;
  std::shared_ptr<const row_fills> fills_;
  mutable std::mutex mutex_;
  mutable std::vector<float> padding_;
};

/// Rows of the result's vocabulary in one model: a row of its own, or -1 - i for fill i.
struct row_map {
  std::vector<std::int64_t> rows;
  bool same = true;  ///< The model fits as it is.
};

class aligner {
 public:
  aligner(const recipe& what, const std::vector<model_reference>& names, std::optional<std::size_t> base,
          std::size_t main, std::vector<io::archive>& models, io::metadata& result)
      : what_(what), names_(names), base_(base), main_(main), models_(models), result_(result) {}

  flywheel::result<void> run() {
    bool any = false;
    for (const io::archive& model : models_) {
      auto read = read_tokens(model.metadata());
      if (!read) return error{read.error().code, read.error().message, file_of(model) + ": " + read.error().where};
      any = any || !read->tokens.empty();
      lists_.push_back(*std::move(read));
      const io::tensor_info* tensor = model.find(embeddings);
      sizes_.push_back(tensor == nullptr || tensor->dims.rank() != 2 ? 0 : tensor->dims[0]);
    }
    if (what_.tokenizer_source.empty()) {
      FLYWHEEL_CHECK(match_as_they_are());
    } else {
      if (!any)
        return error{errc::invalid_argument, "the recipe has a tokenizer, but no model has a vocabulary", "tokenizer"};
      FLYWHEEL_CHECK(match_by_text());
    }
    for (std::size_t m = 0; m < models_.size(); ++m)
      if (!maps_[m].same) changed_.push_back(m);
    return changed_.empty() ? flywheel::result<void>() : align();
  }

 private:
  using result_of_nothing = flywheel::result<void>;

  result_of_nothing match_as_they_are() {
    const token_list& mine = lists_[main_];
    for (std::size_t m = 0; m < models_.size(); ++m) {
      const token_list& other = lists_[m];
      const std::size_t n = std::min(mine.tokens.size(), other.tokens.size());
      for (std::size_t i = 0; i < n; ++i)
        if (mine.tokens[i] != other.tokens[i])
          return error{errc::invalid_argument,
                       "the vocabularies differ: token " + std::to_string(i) + " is " + in_quotes(mine.tokens[i]) +
                           " in " + file_of(models_[main_]) + " and " + in_quotes(other.tokens[i]) + " in " +
                           file_of(models_[m]) +
                           "; unite them with 'tokenizer: {source: union}', or keep the base's "
                           "with 'tokenizer: {source: base}'",
                       std::string(embeddings)};
    }
    std::int64_t rows = sizes_[main_];
    std::size_t fewest = main_;
    if (!base_)
      for (std::size_t m = 0; m < models_.size(); ++m)
        if (sizes_[m] != 0 && sizes_[m] < rows) rows = sizes_[m], fewest = m;
    if (rows < static_cast<std::int64_t>(mine.tokens.size()) && fewest != main_)
      return error{errc::invalid_argument,
                   file_of(models_[fewest]) + " has embeddings of " + std::to_string(rows) + " tokens, " +
                       file_of(models_[main_]) + " a vocabulary of " + std::to_string(mine.tokens.size()) +
                       "; give a base_model, or say 'tokenizer: {source: union}'",
                   std::string(embeddings)};
    rows_ = rows;
    for (const std::int64_t size : sizes_) {
      row_map map;
      map.same = size == rows || size == 0;
      for (std::int64_t i = 0; !map.same && i < rows; ++i) map.rows.push_back(i < size ? i : fill_of({{main_, i}}));
      maps_.push_back(std::move(map));
    }
    return {};
  }

  /// The model whose vocabulary the result's begins with.
  [[nodiscard]] flywheel::result<std::size_t> source() const {
    if (what_.tokenizer_source == "union" || what_.tokenizer_source == "base") return main_;
    for (std::size_t m = 0; m < names_.size(); ++m)
      if (names_[m].path == what_.tokenizer_source) return m;
    return error{errc::not_found, in_quotes(what_.tokenizer_source) + " is none of the recipe's models",
                 "tokenizer.source"};
  }

  result_of_nothing match_by_text() {
    FLYWHEEL_TRY(const std::size_t source, this->source());
    token_list made = lists_[source];
    if (made.tokens.empty())
      return error{errc::invalid_argument, "the model that the tokenizer comes from has no vocabulary",
                   file_of(models_[source])};
    for (std::size_t m = 0; m < models_.size(); ++m) {
      const std::string kind = kind_of_vocabulary(models_[m]), wanted = kind_of_vocabulary(models_[source]);
      if (!lists_[m].tokens.empty() && kind != wanted)
        return error{errc::unsupported,
                     "vocabularies of two kinds cannot be aligned: " + file_of(models_[source]) + " has " +
                         in_quotes(wanted) + ", " + file_of(models_[m]) + " " + in_quotes(kind),
                     "tokenizer"};
    }
    if (what_.tokenizer_source == "union")
      for (std::size_t m = 0; m < models_.size(); ++m)
        if (m != source) unite(made, lists_[m], sizes_[m], kind_of_vocabulary(models_[m]));
    for (const recipe::token_source& token : what_.tokens)
      if (made.find(token.token) < 0) made.add(token.token, 0, token_kind::user_defined);
    const auto named = static_cast<std::int64_t>(made.tokens.size());
    rows_ = (named + what_.pad_to_multiple_of - 1) / what_.pad_to_multiple_of * what_.pad_to_multiple_of;
    for (std::int64_t i = named; i < rows_; ++i) {
      std::string padding = "[PAD" + std::to_string(i) + "]";
      while (made.find(padding) >= 0) padding += "_";
      made.add(padding, 0, token_kind::unused);
    }
    write(made, source);
    return map_tokens(made, named);
  }

  /// Adds what `from` has beyond it.
  static void unite(token_list& made, const token_list& from, std::int64_t rows, const std::string& kind) {
    std::vector<std::size_t> added;
    for (std::size_t i = 0; i < from.tokens.size() && static_cast<std::int64_t>(i) < rows; ++i)
      if (from.kind(i) != static_cast<std::int32_t>(token_kind::unused) && made.find(from.tokens[i]) < 0)
        added.push_back(i);
    // SentencePiece's BPE joins the pair with the highest score: those of new tokens are below all others, in their
    // own order. The scores of a unigram model are logarithms of probabilities, which stay what they are.
    float lowest = 0;
    for (const float s : made.scores) lowest = std::min(lowest, s);
    std::vector<std::size_t> ranked = added;
    std::unordered_map<std::size_t, float> scores;
    if (!from.scores.empty())
      std::stable_sort(ranked.begin(), ranked.end(),
                       [&](std::size_t a, std::size_t b) { return from.scores[a] > from.scores[b]; });
    for (std::size_t r = 0; r < ranked.size(); ++r)
      scores[ranked[r]] =
          kind == "t5" && !from.scores.empty() ? from.scores[ranked[r]] : lowest - static_cast<float>(r + 1);
    std::set<std::string_view> fresh;
    for (const std::size_t i : added) {
      const bool plain = from.kind(i) == static_cast<std::int32_t>(token_kind::normal);
      made.add(from.tokens[i], plain ? scores[i] : 0, static_cast<token_kind>(from.kind(i)));
      fresh.insert(from.tokens[i]);
    }
    // Merges that make new tokens, behind the others.
    for (const std::string& merge : from.merges) {
      const std::size_t space = merge.find(' ', 1);
      if (space == std::string::npos) continue;
      const std::string left = merge.substr(0, space), right = merge.substr(space + 1);
      if (fresh.contains(left + right) && made.find(left) >= 0 && made.find(right) >= 0) made.merges.push_back(merge);
    }
  }

  /// The vocabulary as the result's metadata.
  void write(const token_list& made, std::size_t source) {
    if (source != main_) {
      std::vector<std::string> old;
      for (const io::entry& e : result_.entries())
        if (e.key.starts_with("tokenizer.")) old.push_back(e.key);
      for (const std::string& key : old) result_.erase(key);
      for (const io::entry& e : models_[source].metadata().entries())
        if (e.key.starts_with("tokenizer.")) result_.set(e.key, e.value);
    }
    result_.set("tokenizer.ggml.tokens", made.tokens);
    if (!made.scores.empty()) result_.set("tokenizer.ggml.scores", made.scores);
    if (!made.kinds.empty()) result_.set("tokenizer.ggml.token_type", made.kinds);
    if (!made.merges.empty()) result_.set("tokenizer.ggml.merges", made.merges);
  }

  /// Which row of which model a recipe wants a token to be.
  flywheel::result<std::vector<row_place>> wanted_row(const recipe::token_source& token) {
    if (token.zero) return std::vector<row_place>();
    const auto at = std::find(names_.begin(), names_.end(), *token.from);
    if (at == names_.end())
      return error{errc::not_found, in_quotes(token.from->path) + " is none of the recipe's models",
                   "tokenizer.tokens: " + in_quotes(token.token)};
    const auto model = static_cast<std::size_t>(at - names_.begin());
    const std::string& text = token.other.empty() ? token.token : token.other;
    const std::int64_t row = token.id ? *token.id : lists_[model].find(text);
    if (row < 0 || row >= sizes_[model])
      return error{errc::not_found,
                   file_of(models_[model]) + " has no token " + (token.id ? std::to_string(row) : in_quotes(text)),
                   "tokenizer.tokens: " + in_quotes(token.token)};
    return std::vector<row_place>{{model, row}};
  }

  result_of_nothing map_tokens(const token_list& made, std::int64_t named) {
    // The row of each token in each model; -1: none. A model without a vocabulary is taken to have main's.
    std::vector<std::vector<std::int64_t>> own(models_.size(), std::vector<std::int64_t>(index_of(named), -1));
    for (std::size_t m = 0; m < models_.size(); ++m) {
      const token_list& list = lists_[m].tokens.empty() ? lists_[main_] : lists_[m];
      for (std::size_t i = 0; i < index_of(named); ++i)
        if (const std::int64_t id = list.find(made.tokens[i]); id < sizes_[m]) own[m][i] = id;
    }
    std::vector<std::int64_t> fills(index_of(named), 0);
    std::vector<bool> forced(index_of(named), false), decided(index_of(named), false);
    for (const recipe::token_source& token : what_.tokens) {
      const std::size_t i = index_of(made.find(token.token));
      forced[i] = token.force;
      if (!token.from && !token.zero) continue;
      FLYWHEEL_TRY(auto row, wanted_row(token));
      fills[i] = fill_of(std::move(row));
      decided[i] = true;
    }
    for (std::size_t i = 0; i < index_of(named); ++i) {
      if (decided[i]) continue;
      std::vector<row_place> places;
      bool missing = forced[i];
      for (std::size_t m = 0; m < models_.size(); ++m) {
        if (own[m][i] >= 0) places.push_back({m, own[m][i]});
        missing = missing || (own[m][i] < 0 && sizes_[m] != 0);
      }
      if (!missing) continue;
      if (base_ && own[*base_][i] >= 0) places = {{*base_, own[*base_][i]}};
      fills[i] = fill_of(std::move(places));
    }
    for (std::size_t m = 0; m < models_.size(); ++m) {
      row_map map;
      map.same = sizes_[m] == rows_ || sizes_[m] == 0;
      for (std::size_t i = 0; i < index_of(named); ++i) {
        map.rows.push_back(own[m][i] >= 0 && !forced[i] ? own[m][i] : fills[i]);
        map.same = map.same && (sizes_[m] == 0 || map.rows.back() == static_cast<std::int64_t>(i));
      }
      maps_.push_back(std::move(map));
    }
    return {};
  }

  std::int64_t fill_of(std::vector<row_place> places) {
    means_.push_back(std::move(places));
    return -static_cast<std::int64_t>(means_.size());
  }

  /// The tensor of this name, or what stands for it.
  static const io::tensor_info* stand_in(const io::archive& model, std::string_view name) {
    const io::tensor_info* found = model.find(name);
    return found == nullptr && name == head ? model.find(embeddings) : found;
  }

  result_of_nothing align() {
    const std::vector<io::archive> before = models_;
    std::array<std::shared_ptr<const row_fills>, by_token.size()> fills;
    for (std::size_t k = 0; k < by_token.size(); ++k) {
      auto one = std::make_shared<row_fills>();
      one->models = before;
      one->means = means_;
      for (const io::archive& model : before) one->tensors.push_back(stand_in(model, by_token[k]));
      fills[k] = std::move(one);
    }
    for (const std::size_t m : changed_) {
      if (before[m].find("output.bias") != nullptr)
        return error{errc::unsupported, "a bias of the output head cannot be aligned to another vocabulary",
                     file_of(before[m]) + ": output.bias"};
      FLYWHEEL_TRY(models_[m], aligned(before[m], maps_[m], fills));
    }
    const auto architecture = result_.string("general.architecture");
    if (const std::string key = std::string(architecture ? *architecture : "") + ".vocab_size"; result_.contains(key))
      result_.set(key, static_cast<std::uint32_t>(rows_));
    return {};
  }

  flywheel::result<io::archive> aligned(const io::archive& model, const row_map& map,
                                        std::span<const std::shared_ptr<const row_fills>> fills) const {
    io::archive_content made;
    made.metadata = model.metadata();
    made.sources.assign(model.sources().begin(), model.sources().end());
    made.path = model.path();
    made.file_bytes = model.file_bytes();
    made.files = model.parts();
    const auto computed = std::make_shared<io::computed_source>();
    const auto part = static_cast<std::uint32_t>(made.sources.size());
    for (const io::tensor_info& tensor : model.tensors()) {
      const auto which = std::find(by_token.begin(), by_token.end(), tensor.name);
      if (which == by_token.end()) {
        made.tensors.push_back(tensor);
        continue;
      }
      FLYWHEEL_CHECK(check_widths(model, tensor, *fills[static_cast<std::size_t>(which - by_token.begin())]));
      io::tensor_info to = tensor;
      to.type = dtype::f32;
      to.dims = {rows_, tensor.dims.cols()};
      to.part = part;
      const std::size_t row = row_bytes(dtype::f32, tensor.dims.cols());
      to.bytes = static_cast<std::uint64_t>(rows_) * row;
      to.offset = computed->add(std::make_unique<aligned_rows>(
                                    model, tensor, map.rows, fills[static_cast<std::size_t>(which - by_token.begin())]),
                                rows_, row);
      made.tensors.push_back(std::move(to));
    }
    made.sources.push_back(computed);
    return io::archive::assemble(std::move(made));
  }

  /// Rows of all models are equally long.
  static result_of_nothing check_widths(const io::archive& model, const io::tensor_info& tensor,
                                        const row_fills& fills) {
    if (formats::find_decoder(tensor.type) == nullptr)
      return error{errc::unsupported, "no decoder for type " + std::string(to_string(tensor.type)),
                   file_of(model) + ": " + tensor.name};
    for (std::size_t m = 0; m < fills.models.size(); ++m) {
      const io::tensor_info* other = fills.tensors[m];
      if (other != nullptr && other->dims.cols() == tensor.dims.cols() && formats::find_decoder(other->type) != nullptr)
        continue;
      const bool used = std::any_of(fills.means.begin(), fills.means.end(), [&](const std::vector<row_place>& of) {
        return std::any_of(of.begin(), of.end(), [&](const row_place& place) { return place.model == m; });
      });
      if (used)
        return error{errc::invalid_argument,
                     "rows of " + file_of(fills.models[m]) + " do not fit those of " + file_of(model) + ", " +
                         tensor.dims.to_string(),
                     tensor.name};
    }
    return {};
  }

  const recipe& what_;
  const std::vector<model_reference>& names_;
  std::optional<std::size_t> base_;
  std::size_t main_;
  std::vector<io::archive>& models_;
  io::metadata& result_;
  std::vector<token_list> lists_;    // [models]
  std::vector<std::int64_t> sizes_;  // [models] rows of embeddings; 0: none
  std::vector<row_map> maps_;        // [models]
  std::vector<std::vector<row_place>> means_;
  std::vector<std::size_t> changed_;
  std::int64_t rows_ = 0;
};

}  // namespace

result<void> align_vocabularies(const recipe& what, const std::vector<model_reference>& names,
                                std::optional<std::size_t> base, std::size_t main, std::vector<io::archive>& models,
                                io::metadata& result) {
  return aligner(what, names, base, main, models, result).run();
}

}  // namespace flywheel::inline v0::adapt
