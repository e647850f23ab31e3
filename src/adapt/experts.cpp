#include "flywheel/adapt/experts.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <system_error>
#include <utility>

#include "flywheel/adapt/adapters.hpp"
#include "flywheel/adapt/merge/method.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/device/observer.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/model/adapter_archive.hpp"
#include "flywheel/model/model.hpp"
#include "flywheel/model/open.hpp"
#include "src/io/computed_tensors.hpp"

namespace flywheel::inline v0::adapt {
namespace {

constexpr std::string_view expert_parts[] = {"ffn_gate", "ffn_up", "ffn_down"};

/// Sums of what goes into each layer's feed-forward block, by expert and by kind of prompt. For one run at a time.
class input_sums final : public device::observer {
 public:
  struct sums {
    std::vector<double> x, xx;  ///< [cols]
    std::int64_t rows = 0;
  };

  input_sums(std::int64_t layers, std::size_t kinds) : sums_(static_cast<std::size_t>(layers)), kinds_(kinds) {}

  void begin(std::span<const device::observation_point> points) override {
    for (const device::observation_point& p : points) {
      layer_.push_back(layer_of(p));
      if (layer_.back() < 0) continue;
      auto& of = sums_[static_cast<std::size_t>(layer_.back())];
      const auto n = static_cast<std::size_t>(p.cols);
      of.assign(kinds_, {std::vector<double>(n), std::vector<double>(n), 0});
    }
  }
  [[nodiscard]] bool wants(const device::observation_point& p) const override { return layer_of(p) >= 0; }
  void observe(const device::observed_rows& seen, unsigned worker, unsigned workers) noexcept override {
    const std::int64_t layer = layer_[seen.point];
    if (layer < 0) return;
    sums& to = sums_[static_cast<std::size_t>(layer)][kind];
    const std::int64_t first = seen.cols * worker / workers, last = seen.cols * (worker + 1) / workers;
    for (std::int64_t r = 0; r < seen.rows; ++r)
      for (std::int64_t c = first; c < last; ++c) {
        const auto v = static_cast<double>(seen.x[r * seen.cols + c]);
        to.x[static_cast<std::size_t>(c)] += v;
        to.xx[static_cast<std::size_t>(c)] += v * v;
      }
    if (worker == 0) to.rows += seen.rows;
  }

  std::size_t kind = 0;  ///< Of the prompt that is run.
  [[nodiscard]] const std::vector<sums>& of(std::int64_t layer) const { return sums_[static_cast<std::size_t>(layer)]; }

 private:
  /// Whose feed-forward input it is; -1: no one's.
  [[nodiscard]] std::int64_t layer_of(const device::observation_point& p) const {
    for (std::size_t l = 0; l < sums_.size(); ++l)
      for (const std::string& w : p.weights)
        if (w == "blk." + std::to_string(l) + ".ffn_gate.weight") return static_cast<std::int64_t>(l);
    return -1;
  }

  std::vector<std::vector<sums>> sums_;  ///< [layers][kinds]
  std::vector<std::int64_t> layer_;      ///< [points]
  std::size_t kinds_;
};

/// The matrices of all experts, one after the other.
class stacked_experts final : public io::computed_tensor {
 public:
  struct part {
    io::archive from;
    io::tensor_info tensor;
  };
  explicit stacked_experts(std::vector<part> parts) : parts_(std::move(parts)) {}

  [[nodiscard]] result<void> rows(std::int64_t first, std::int64_t count, std::byte* out) const override {
    const shape& dims = parts_[0].tensor.dims;
    const std::int64_t each = dims.rows();
    const std::size_t row = row_bytes(parts_[0].tensor.type, dims.cols());
    while (count > 0) {
      const part& p = parts_[static_cast<std::size_t>(first / each)];
      const std::int64_t at = first % each, n = std::min(count, each - at);
      const std::size_t bytes = static_cast<std::size_t>(n) * row;
      FLYWHEEL_CHECK(p.from.read(p.tensor, static_cast<std::uint64_t>(at) * row, {out, bytes}));
      out += bytes;
      first += n;
      count -= n;
    }
    return {};
  }
  void release() const noexcept override {
    for (const part& p : parts_) p.from.release(p.tensor);
  }

 private:
  std::vector<part> parts_;
};

double dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

using vectors = std::vector<std::vector<double>>;  // [experts][cols]

/// Differences from the mean over experts.
void subtract_mean(vectors& v) {
  for (std::size_t c = 0; c < v[0].size(); ++c) {
    double mean = 0;
    for (const auto& one : v) mean += one[c] / static_cast<double>(v.size());
    for (auto& one : v) one[c] -= mean;
  }
}

void scale_to_norm(vectors& v, double norm) {
  for (auto& one : v)
    if (const double length = std::sqrt(dot(one, one)); length > 0)
      for (double& x : one) x *= norm / length;
}

/// gate_mode::hidden, of one layer. sums: positive prompts of each expert, then negative ones.
vectors discriminant(const std::vector<input_sums::sums>& sums, std::size_t experts, double sharpness) {
  const std::size_t n = sums[0].x.size();
  vectors mean(experts, std::vector<double>(n)), v;
  std::vector<double> variance(n), middle(n);
  double rows = 0;
  for (std::size_t k = 0; k < experts; ++k) {
    const auto count = static_cast<double>(sums[k].rows);
    for (std::size_t c = 0; c < n; ++c) {
      mean[k][c] = sums[k].x[c] / count;
      variance[c] += sums[k].xx[c] - count * mean[k][c] * mean[k][c];
      middle[c] += mean[k][c] / static_cast<double>(experts);
    }
    rows += count;
  }
  double floor = 0;  // keeps numbers that hardly vary from deciding alone
  for (std::size_t c = 0; c < n; ++c) floor += 0.1 * variance[c] / static_cast<double>(n);
  v = mean;
  for (std::size_t k = 0; k < experts; ++k)
    if (const input_sums::sums& negative = sums[experts + k]; negative.rows > 0)
      for (std::size_t c = 0; c < n; ++c) v[k][c] -= negative.x[c] / static_cast<double>(negative.rows);
  subtract_mean(v);
  for (auto& one : v) {
    for (std::size_t c = 0; c < n; ++c) one[c] *= rows / (variance[c] + floor);
    const double along = dot(one, middle) / dot(middle, middle);
    for (std::size_t c = 0; c < n; ++c) one[c] -= along * middle[c];
  }
  double margin = 0;
  for (std::size_t k = 0; k < experts; ++k) {
    double next = -HUGE_VAL;
    for (std::size_t other = 0; other < experts; ++other)
      if (other != k) next = std::max(next, dot(v[other], mean[k]));
    margin += (dot(v[k], mean[k]) - next) / static_cast<double>(experts);
  }
  if (!(margin > 0)) {  // prompts that do not tell experts apart
    scale_to_norm(v, sharpness);
    return v;
  }
  for (auto& one : v)
    for (double& x : one) x *= sharpness / margin;
  return v;
}

class expert_mixer {
 public:
  expert_mixer(const experts_recipe& what, const std::filesystem::path& folder, const experts_options& options)
      : what_(what), folder_(folder), options_(options) {}

  result<io::archive> run() {
    if (!(options_.sharpness > 0)) return error{errc::invalid_argument, "must be above 0", "sharpness"};
    if (options_.ctx < 2) return error{errc::invalid_argument, "must be at least 2", "ctx"};
    FLYWHEEL_CHECK(open());
    FLYWHEEL_CHECK(find_routers());
    return assemble();
  }

 private:
  [[nodiscard]] std::filesystem::path place(const std::string& path) const {
    std::error_code failed;
    const std::filesystem::path inside = folder_ / path;
    return !folder_.empty() && std::filesystem::exists(inside, failed) ? inside : std::filesystem::path(path);
  }
  result<io::archive> open_one(const model_reference& m) const {
    FLYWHEEL_TRY(io::archive opened, open_model_archive(place(m.path)));
    if (m.adapter.empty()) return opened;
    FLYWHEEL_TRY(io::archive adapter, open_adapter_archive(place(m.adapter), opened));
    const scaled_adapter one{std::move(adapter), 1};
    return apply_adapters(opened, std::span(&one, 1));
  }

  result<void> open() {
    FLYWHEEL_TRY(base_, open_one(what_.base));
    FLYWHEEL_TRY(const auto architecture, base_.metadata().string("general.architecture"));
    if (architecture != "llama")
      return error{errc::unsupported,
                   "mixtures of experts are made of llama models, and this is " + std::string(architecture),
                   base_.path().string()};
    FLYWHEEL_TRY(layers_, base_.metadata().integer("llama.block_count"));
    FLYWHEEL_TRY(cols_, base_.metadata().integer("llama.embedding_length"));
    for (const experts_recipe::expert& e : what_.experts) {
      FLYWHEEL_TRY(experts_.emplace_back(), open_one(e.model));
      for (std::int64_t l = 0; l < layers_; ++l)
        for (const std::string_view part : expert_parts) FLYWHEEL_CHECK(check(experts_.back(), tensor_name(l, part)));
    }
    return {};
  }

  [[nodiscard]] static std::string tensor_name(std::int64_t layer, std::string_view part) {
    return "blk." + std::to_string(layer) + "." + std::string(part) + ".weight";
  }

  /// The tensor of an expert fits those of the base.
  result<void> check(const io::archive& expert, const std::string& name) const {
    const io::tensor_info* const own = base_.find(name);
    const io::tensor_info* const other = expert.find(name);
    const std::string files = base_.path().string() + " and " + expert.path().string();
    if (own == nullptr || other == nullptr || own->dims.rank() != 2)
      return error{errc::invalid_argument,
                   "a mixture is made of dense models with this matrix, which one of " + files + " has not", name};
    if (own->dims != other->dims)
      return error{errc::invalid_argument,
                   "its extents are " + own->dims.to_string() + " and " + other->dims.to_string() + " in " + files,
                   name};
    if (const io::tensor_info& first = *experts_[0].find(name); first.type != other->type)
      return error{errc::invalid_argument,
                   "its types are " + std::string(to_string(first.type)) + " and " +
                       std::string(to_string(other->type)) + " in " + experts_[0].path().string() + " and " +
                       expert.path().string() + "; convert one of them first",
                   name};
    return {};
  }

  result<void> find_routers() {
    if (what_.gate != gate_mode::random)
      for (const experts_recipe::expert& e : what_.experts)
        if (e.positive_prompts.empty())
          return error{errc::invalid_argument, "an expert needs positive_prompts, unless gate_mode is random",
                       e.model.path};
    if (what_.gate == gate_mode::hidden) return run_prompts();
    vectors v(experts_.size(), std::vector<double>(static_cast<std::size_t>(cols_)));
    if (what_.gate == gate_mode::cheap_embed) {
      FLYWHEEL_CHECK(average_embeddings(v));
      subtract_mean(v);
    } else {
      for (std::size_t k = 0; k < v.size(); ++k)
        for (std::size_t c = 0; c < v[k].size(); ++c) v[k][c] = merge::uniform(options_.seed, k, c) - 0.5;
    }
    scale_to_norm(v, options_.sharpness);
    routers_.assign(static_cast<std::size_t>(layers_), v);
    return {};
  }

  result<void> run_prompts() {
    FLYWHEEL_TRY(const context ctx, options_.context.or_default());
    const std::size_t n = experts_.size();
    const auto seen = std::make_shared<input_sums>(layers_, 2 * n);
    FLYWHEEL_TRY(const model base, model::open(base_, {ctx, {{}, options_.control.stop}, {}, seen}));
    if (!base.tokenizer())
      return error{errc::unsupported, "the base has no vocabulary; prompts cannot be encoded", base_.path().string()};
    session_options how;
    how.n_ctx = options_.ctx;
    FLYWHEEL_TRY(session s, base.new_session(how));
    std::size_t done = 0, total = 0;
    for (const auto& e : what_.experts) total += e.positive_prompts.size() + e.negative_prompts.size();
    for (std::size_t k = 0; k < 2 * n; ++k) {
      const experts_recipe::expert& e = what_.experts[k % n];
      seen->kind = k;
      for (const std::string& prompt : k < n ? e.positive_prompts : e.negative_prompts) {
        FLYWHEEL_TRY(const std::vector<token_id> ids, base.tokenizer().encode(prompt, {.add_special = true}));
        const auto most = static_cast<std::size_t>(options_.ctx);
        for (std::size_t at = 0; at + 1 < ids.size(); at += most) {
          s.clear();
          const auto piece = std::span(ids).subspan(at, std::min(most, ids.size() - at));
          // Scoring needs the logits of every token: so all of them reach the last layer.
          if (piece.size() > 1) FLYWHEEL_CHECK(s.score(piece, {{}, options_.control.stop}));
        }
        if (options_.control.progress) options_.control.progress(++done, total, e.model.path);
      }
      if (k < n && seen->of(0)[k].rows == 0)
        return error{errc::invalid_argument, "the prompts of this expert are too short", e.model.path};
    }
    for (std::int64_t l = 0; l < layers_; ++l) routers_.push_back(discriminant(seen->of(l), n, options_.sharpness));
    return {};
  }

  result<void> average_embeddings(vectors& v) {
    FLYWHEEL_TRY(const text::tokenizer vocabulary, text::tokenizer::from_metadata(base_.metadata()));
    const io::tensor_info* const table = base_.find("token_embd.weight");
    if (table == nullptr || table->dims.cols() != cols_ || formats::find_decoder(table->type) == nullptr)
      return error{errc::unsupported, "the base has no embeddings that can be read", "token_embd.weight"};
    const std::size_t bytes = row_bytes(table->type, cols_);
    std::vector<std::byte> stored(bytes);
    std::vector<float> row(static_cast<std::size_t>(cols_));
    for (std::size_t k = 0; k < v.size(); ++k)
      for (const bool positive : {true, false}) {
        const experts_recipe::expert& e = what_.experts[k];
        std::vector<token_id> all;
        for (const std::string& prompt : positive ? e.positive_prompts : e.negative_prompts) {
          FLYWHEEL_TRY(const std::vector<token_id> ids, vocabulary.encode(prompt, {.add_special = false}));
          all.insert(all.end(), ids.begin(), ids.end());
        }
        for (const token_id id : all) {
          FLYWHEEL_CHECK(base_.read(*table, static_cast<std::uint64_t>(id) * bytes, stored));
          FLYWHEEL_CHECK(formats::decode(tensor_view(table->type, {1, cols_}, stored.data()), row));
          const double share = (positive ? 1.0 : -1.0) / static_cast<double>(all.size());
          for (std::size_t c = 0; c < row.size(); ++c) v[k][c] += share * static_cast<double>(row[c]);
        }
      }
    return {};
  }

  result<io::archive> assemble() const {
    io::archive_content made;
    made.metadata = base_.metadata();
    made.metadata.set("llama.expert_count", static_cast<std::uint32_t>(experts_.size()));
    made.metadata.set("llama.expert_used_count",
                      static_cast<std::uint32_t>(
                          std::min<std::int64_t>(what_.experts_per_token, static_cast<std::int64_t>(experts_.size()))));
    made.metadata.erase("flywheel.lineage");
    made.sources.assign(base_.sources().begin(), base_.sources().end());
    made.path = base_.path();
    made.file_bytes = base_.file_bytes();
    made.files = base_.parts();
    const auto computed = std::make_shared<io::computed_source>();
    /// `rows`: in how many pieces the tensor is computed.
    const auto add = [&](std::string name, dtype type, shape dims, std::unique_ptr<io::computed_tensor> tensor,
                         std::int64_t rows) {
      io::tensor_info to;
      to.name = std::move(name);
      to.type = type;
      to.dims = std::move(dims);
      to.part = static_cast<std::uint32_t>(made.sources.size());
      to.bytes = static_cast<std::uint64_t>(to.dims.rows()) * row_bytes(type, to.dims.cols());
      to.offset =
          computed->add(std::move(tensor), rows, static_cast<std::size_t>(to.bytes) / static_cast<std::size_t>(rows));
      made.tensors.push_back(std::move(to));
    };
    const auto n = static_cast<std::int64_t>(experts_.size());
    for (const io::tensor_info& t : base_.tensors()) {
      const std::string_view name = t.name;
      const auto part = std::find_if(std::begin(expert_parts), std::end(expert_parts), [&](std::string_view p) {
        return name.starts_with("blk.") && name.ends_with("." + std::string(p) + ".weight");
      });
      if (part == std::end(expert_parts)) {
        made.tensors.push_back(t);
        continue;
      }
      std::vector<stacked_experts::part> parts;
      for (const io::archive& e : experts_) parts.push_back({e, *e.find(name)});
      const std::string prefix(name.substr(0, name.find('.', 4) + 1));
      const dtype type = parts[0].tensor.type;
      add(prefix + std::string(*part) + "_exps.weight", type, {n, t.dims[0], t.dims[1]},
          std::make_unique<stacked_experts>(std::move(parts)), n * t.dims[0]);
    }
    for (std::int64_t l = 0; l < layers_; ++l) {
      std::vector<float> router;
      for (const std::vector<double>& one : routers_[static_cast<std::size_t>(l)])
        for (const double x : one) router.push_back(static_cast<float>(x));
      add(tensor_name(l, "ffn_gate_inp"), dtype::f32, {n, cols_}, io::make_constant(std::move(router)), 1);
    }
    made.sources.push_back(computed);
    return io::archive::assemble(std::move(made));
  }

  const experts_recipe& what_;
  const std::filesystem::path& folder_;
  const experts_options& options_;
  io::archive base_;
  std::vector<io::archive> experts_;
  std::int64_t layers_ = 0, cols_ = 0;
  std::vector<vectors> routers_;  ///< [layers]
};

}  // namespace

result<io::archive> mix_experts(const experts_recipe& what, const std::filesystem::path& folder,
                                const experts_options& options) {
  return detail::guarded([&]() -> result<io::archive> {
    if (what.experts.size() < 2)
      return error{errc::invalid_argument, "a mixture needs at least two experts", "experts"};
    if (what.experts_per_token < 1 || what.experts_per_token > static_cast<std::int64_t>(what.experts.size()))
      return error{errc::invalid_argument, "must be from 1 to the number of experts", "experts_per_token"};
    return expert_mixer(what, folder, options).run();
  });
}

}  // namespace flywheel::inline v0::adapt
