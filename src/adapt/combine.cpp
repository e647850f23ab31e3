// Adapters of one base made one.
#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "flywheel/adapt/adapters.hpp"
#include "flywheel/adapt/merge_models.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/model/adapter_archive.hpp"
#include "src/adapt/adapter_builder.hpp"
#include "src/adapt/changed_tensor.hpp"
#include "src/adapt/low_rank.hpp"
#include "src/io/reading.hpp"
#include "src/model/adapter_tensors.hpp"

namespace flywheel::inline v0::adapt {
namespace {

std::size_t count_of(std::int64_t n) noexcept { return static_cast<std::size_t>(n); }

/// The changes of one tensor by all adapters that have it.
struct tensor_group {
  std::string name;                     ///< output.weight for a tied head.
  const io::tensor_info* to = nullptr;  ///< Of the base.
  bool embedding = false;
  std::vector<tensor_change> changes;
};

/// L [rows, rank], R [matrices, rank, cols] of one change.
struct factors {
  std::vector<float> left, right;
};

result<factors> read_factors(const tensor_change& c, const tensor_group& group) {
  const io::tensor_info &a = *c.adapter.find(c.change.a), &b = *c.adapter.find(c.change.b);
  factors f{std::vector<float>(count_of(b.dims.elements())), std::vector<float>(count_of(a.dims.elements()))};
  FLYWHEEL_CHECK(read_rows(c.adapter, b, 0, b.dims.rows(), f.left.data()));
  FLYWHEEL_CHECK(read_rows(c.adapter, a, 0, a.dims.rows(), f.right.data()));
  if (!group.embedding) return f;
  const std::int64_t rank = c.change.rank, cols = group.to->dims.cols();
  std::vector<float> turned(f.left.size());
  for (std::int64_t k = 0; k < cols; ++k)
    for (std::int64_t j = 0; j < rank; ++j) turned[count_of(j * cols + k)] = f.left[count_of(k * rank + j)];
  return factors{std::move(f.right), std::move(turned)};
}

double weight_of(const tensor_change& c) noexcept { return static_cast<double>(c.scale) * c.change.factor; }

class combiner {
 public:
  combiner(const io::archive& base, const combine_options& options, const context& ctx)
      : options_(options), ctx_(ctx), builder_(base, options.name, options.type) {}

  result<void> add(const tensor_group& g) {
    switch (options_.how) {
      case combination::concatenate:
        return concatenate(g);
      case combination::linear:
        return linear(g);
      default:
        return compress(g);
    }
  }
  result<extracted_adapter> finish() { return builder_.finish(); }

 private:
  result<void> concatenate(const tensor_group& g) {
    std::int64_t rank = 0;
    for (const tensor_change& c : g.changes) rank += c.change.rank;
    const std::int64_t rows = g.to->dims.rows(), cols = g.to->dims.cols();
    const std::int64_t matrices = g.to->dims.rank() == 3 ? g.to->dims[0] : 1;
    std::vector<float> left(count_of(rows * rank)), right(count_of(matrices * rank * cols));
    std::int64_t at = 0;
    for (const tensor_change& c : g.changes) {
      FLYWHEEL_TRY(const factors f, read_factors(c, g));
      const std::int64_t own = c.change.rank;
      const auto factor = static_cast<float>(weight_of(c));
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t j = 0; j < own; ++j)
          left[count_of(r * rank + at + j)] = factor * f.left[count_of(r * own + j)];
      for (std::int64_t m = 0; m < matrices; ++m)
        std::copy_n(f.right.begin() + m * own * cols, own * cols, right.begin() + (m * rank + at) * cols);
      at += own;
    }
    return exact(g, rank, left, right);
  }

  result<void> linear(const tensor_group& g) {
    const std::int64_t rank = g.changes.front().change.rank;
    factors sum;
    for (const tensor_change& c : g.changes) {
      if (c.change.rank != rank)
        return error{errc::invalid_argument,
                     "the ranks of " + g.name + " differ, so its factors cannot be added; concatenate or compress",
                     c.adapter.path().string()};
      FLYWHEEL_TRY(const factors f, read_factors(c, g));
      const double weight = weight_of(c);
      const auto root = static_cast<float>(std::sqrt(std::abs(weight)));
      sum.left.resize(f.left.size());
      sum.right.resize(f.right.size());
      for (std::size_t i = 0; i < f.left.size(); ++i) sum.left[i] += (weight < 0 ? -root : root) * f.left[i];
      for (std::size_t i = 0; i < f.right.size(); ++i) sum.right[i] += root * f.right[i];
    }
    return exact(g, rank, sum.left, sum.right);
  }

  result<void> exact(const tensor_group& g, std::int64_t rank, std::span<const float> left,
                     std::span<const float> right) {
    FLYWHEEL_CHECK(builder_.add(g.name, g.to->dims, g.embedding, rank, left, right));
    builder_.report(g.name, rank, 0, 0);
    return {};
  }

  result<void> compress(const tensor_group& g) {
    const std::int64_t rows = g.to->dims.rows(), cols = g.to->dims.cols();
    std::vector<float> merged(count_of(rows * cols));
    FLYWHEEL_CHECK(merge_deltas(g, merged));
    std::int64_t rank = options_.rank;
    if (rank == 0)
      for (const tensor_change& c : g.changes) rank = std::max(rank, c.change.rank);
    const std::int64_t matrices = g.to->dims.rank() == 3 ? g.to->dims[0] : 1, n = rows / matrices;
    rank = std::min({rank, n, cols});
    std::vector<float> left, right;
    double squares = 0, errors = 0;
    for (std::int64_t m = 0; m < matrices; ++m) {
      const low_rank_options how{
          rank, {}, 2, seed_of(options_.seed + static_cast<std::uint64_t>(m), g.name), options_.type};
      FLYWHEEL_TRY(
          const low_rank one,
          best_low_rank(std::span(merged).subspan(count_of(m * n * cols), count_of(n * cols)), n, cols, how, ctx_));
      left.insert(left.end(), one.left.begin(), one.left.end());
      right.insert(right.end(), one.right.begin(), one.right.end());
      squares += one.squares;
      errors += one.error_squares;
    }
    builder_.report(g.name, rank, squares, errors);
    return builder_.add(g.name, g.to->dims, g.embedding, rank, left, right);
  }

  result<void> merge_deltas(const tensor_group& g, std::vector<float>& out) const {
    const std::int64_t rows = g.to->dims.rows();
    if (options_.how == combination::svd) {
      for (const tensor_change& c : g.changes)
        FLYWHEEL_CHECK(
            delta_rows(c.adapter, c.change, *g.to).add(0, rows, static_cast<float>(weight_of(c)), out.data()));
      return {};
    }
    std::vector<std::vector<float>> deltas;
    std::vector<const float*> models;
    for (const tensor_change& c : g.changes) {
      std::vector<float>& d = deltas.emplace_back(out.size());
      FLYWHEEL_CHECK(
          delta_rows(c.adapter, c.change, *g.to).add(0, rows, static_cast<float>(c.change.factor), d.data()));
      models.push_back(d.data());
    }
    const merge::method& how = *find_merge_method(options_.how == combination::ties          ? "ties"
                                                  : options_.how == combination::dare_linear ? "dare_linear"
                                                                                             : "dare_ties");
    std::vector<double> parameters;
    for (const merge::parameter_info& p : how.parameters)
      for (std::size_t m = 0; m < (p.per_model ? models.size() : 1); ++m)
        parameters.push_back(p.name == "weight"    ? static_cast<double>(g.changes[m].scale)
                             : p.name == "density" ? options_.density
                                                   : p.fallback);
    merge::task what;
    what.name = g.name;
    what.elements = static_cast<std::int64_t>(out.size());
    what.cols = g.to->dims.cols();
    what.models = models.size();
    what.base = true;
    what.seed = seed_of(options_.seed, g.name);
    what.parameters = parameters;
    const std::vector<float> zeros(out.size());
    merge::merge_tensor(how, what, models, zeros.data(), out);
    return {};
  }

  const combine_options& options_;
  const context& ctx_;
  adapter_builder builder_;
};

result<std::vector<tensor_group>> collect_groups(const io::archive& base, std::span<const scaled_adapter> adapters) {
  std::vector<tensor_group> groups;
  std::map<std::string, std::size_t, std::less<>> places;
  for (const scaled_adapter& use : adapters) {
    if (!std::isfinite(use.scale))
      return error{errc::invalid_argument, "the scale must be a finite number", use.adapter.path().string()};
    FLYWHEEL_TRY(const std::vector<adapter_change> changes, adapter_changes(use.adapter, base));
    for (const adapter_change& c : changes) {
      if (c.what == adapter_change::kind::replace || !c.magnitude.empty())
        return error{errc::invalid_argument,
                     "adapters with DoRA or replaced tensors cannot be combined, because those are no sums of products",
                     use.adapter.path().string() + ": tensor " + io::detail::in_quotes(c.a)};
      const std::string name = c.head ? std::string(detail::output_head) : c.weight;
      const auto [at, fresh] = places.try_emplace(name, groups.size());
      if (fresh) groups.push_back({name, base.find(c.weight), c.what == adapter_change::kind::embedding, {}});
      groups[at->second].changes.push_back({use.adapter, c, use.scale});
    }
  }
  return groups;
}

}  // namespace

result<extracted_adapter> combine_adapters(const io::archive& base, std::span<const scaled_adapter> adapters,
                                           const combine_options& options) {
  return detail::guarded([&]() -> result<extracted_adapter> {
    if (adapters.empty()) return error{errc::invalid_argument, "there are no adapters", "adapters"};
    if (options.rank < 0) return error{errc::invalid_argument, "the rank must not be negative", "rank"};
    if (!(options.density > 0 && options.density <= 1))
      return error{errc::invalid_argument, "the density must be more than 0, at most 1", "density"};
    if (options.type != dtype::f32 && options.type != dtype::f16 && options.type != dtype::bf16)
      return error{errc::invalid_argument, "factors are f32, f16 or bf16", "type"};
    FLYWHEEL_TRY(const context ctx, options.context.or_default());
    FLYWHEEL_TRY(const std::vector<tensor_group> groups, collect_groups(base, adapters));
    combiner all(base, options, ctx);
    for (std::size_t i = 0; i < groups.size(); ++i) {
      if (options.control.stopped()) return error{errc::cancelled, "combining was cancelled", groups[i].name};
      if (options.control.progress) options.control.progress(i, groups.size(), groups[i].name);
      FLYWHEEL_CHECK(all.add(groups[i]));
    }
    return all.finish();
  });
}

}  // namespace flywheel::inline v0::adapt
