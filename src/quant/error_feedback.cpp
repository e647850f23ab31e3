#include "src/quant/error_feedback.hpp"

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "flywheel/detail/try.hpp"
#include "src/quant/products.hpp"

namespace flywheel::inline v0::quant {
namespace {

constexpr std::int64_t free_block = 128;  ///< Columns of a block where grids do not ask for a number.
constexpr std::int64_t most_panels = 4;   ///< Panels of rows that a task takes, to use a block's factors while cached.

constexpr float least_fit_weight = 1e-3F;  ///< Of the mean: groups that were never active get scales, too.

/// A format's levels in ascending order, and the codes behind them.
struct sorted_levels {
  std::vector<float> middles, distances;
  std::vector<std::uint8_t> codes;
  kernels::level_table table;

  explicit sorted_levels(std::span<const float> levels) : codes(levels.size()) {
    std::iota(codes.begin(), codes.end(), std::uint8_t{0});
    std::stable_sort(codes.begin(), codes.end(), [&](std::uint8_t a, std::uint8_t b) { return levels[a] < levels[b]; });
    table.count = static_cast<std::int32_t>(levels.size());
    table.first = levels[codes[0]];
    for (std::size_t i = 0; i + 1 < codes.size(); ++i) {
      const float here = levels[codes[i]], next = levels[codes[i + 1]];
      middles.push_back((here + next) / 2);
      distances.push_back(next - here);
    }
    const auto uneven = [&](float d) { return d != distances[0]; };
    table.step = std::none_of(distances.begin(), distances.end(), uneven) ? distances[0] : 0;
    table.middles = middles.data();
    table.distances = distances.data();
  }
};

/// How errors of other columns move those of one block.
struct block_factors {
  std::int64_t begin = 0, count = 0;
  std::int64_t reach = 0;    ///< Columns 0 .. reach - 1 act at once,
  buffer outer;              ///< prepared [count, reach];
  std::vector<float> inner;  ///< [count, count]: those of the block as they are rounded.
};
using sweep = std::vector<block_factors>;

/// f(j, i) for all columns j in blocks of `block`: what e_i adds to the target of column j.
template <class Factor>
result<sweep> make_sweep(std::int64_t k, std::int64_t block, bool all, const f32_product& product, const context& ctx,
                         const Factor& f) {
  sweep blocks(as_size((k + block - 1) / block));
  std::size_t longest = 0;
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    block_factors& to = blocks[b];
    to.begin = static_cast<std::int64_t>(b) * block;
    to.count = std::min(block, k - to.begin);
    to.reach = all ? k : to.begin;
    to.inner.resize(as_size(to.count * to.count));
    FLYWHEEL_TRY(to.outer, buffer::allocate(product.prepared_bytes(to.count, to.reach), ctx.memory()));
    longest = std::max(longest, as_size(to.count * to.reach));
  }
  FLYWHEEL_TRY(buffer rows, buffer::allocate(longest * sizeof(float) * ctx.executor().concurrency(), ctx.memory()));
  for_tasks(ctx.executor(), static_cast<std::int64_t>(blocks.size()), [&](unsigned slot, std::int64_t task) {
    block_factors& to = blocks[as_size(task)];
    auto* const own = reinterpret_cast<float*>(rows.mutable_data()) + slot * longest;
    for (std::int64_t i = 0; i < to.reach; ++i)
      for (std::int64_t j = 0; j < to.count; ++j) own[j * to.reach + i] = i == to.begin + j ? 0 : f(to.begin + j, i);
    product.prepare(own, to.reach, to.count, to.reach, to.outer.mutable_data());
    for (std::int64_t j = 0; j < to.count; ++j)
      for (std::int64_t i = 0; i < j; ++i) to.inner[as_size(j * to.count + i)] = f(to.begin + j, to.begin + i);
  });
  return blocks;
}

/// Everything that the rows share.
struct problem {
  const tensor_view& w;
  const grid_format& format;
  rounding method;
  f32_product product;
  const kernels::kernel_set& kernels;
  kernels::to_f32_fn to_f32;
  std::int64_t n_out, k;
  std::int64_t block, group;         ///< In columns, none of them 0.
  bool fixed_grids;                  ///< Fitted before anything is rounded.
  std::vector<std::int64_t> order;   ///< Place -> column.
  std::vector<std::int32_t> groups;  ///< Place -> group of its column.
  std::vector<float> fit_weights;    ///< By column.
  sorted_levels levels;
  std::vector<sweep> sweeps;
};

/// Rows of one panel. Matrices are [places, lanes].
class panel {
 public:
  static result<panel> create(const problem& p, const context& ctx) {
    panel made;
    made.lanes_ = p.product.panel_cols();
    const std::size_t cells = as_size(p.k * made.lanes_);
    const std::size_t groups = as_size(p.k / p.group * made.lanes_);
    const auto largest = as_size(std::max(p.fixed_grids ? free_block : p.block, free_block) * made.lanes_);
    for (const auto& [to, size] : {std::pair{&made.weights_, cells},
                                   {&made.errors_, cells},
                                   {&made.scale_, groups},
                                   {&made.inverse_, groups},
                                   {&made.minimum_, groups},
                                   {&made.target_, largest},
                                   {&made.change_, largest}}) {
      FLYWHEEL_TRY(buffer room, buffer::allocate(size * sizeof(float), ctx.memory()));
      *to = std::move(room);
    }
    made.codes_.resize(cells);
    made.grids_.resize(as_size(p.k / p.block * made.lanes_));
    made.row_.resize(as_size(p.k));
    made.row_codes_.resize(as_size(p.k));
    return made;
  }

  /// Decodes rows first .. Returns the first element (row * k + column) that is no finite number, or -1.
  std::int64_t load(const problem& p, std::int64_t first) {
    first_ = first;
    rows_ = std::min(lanes_, p.n_out - first);
    std::memset(errors_.mutable_data(), 0, errors_.size());
    if (rows_ < lanes_) {
      for (buffer* b : {&weights_, &scale_, &inverse_, &minimum_}) std::memset(b->mutable_data(), 0, b->size());
    }
    for (std::int64_t lane = 0; lane < rows_; ++lane) {
      p.to_f32(p.w.row(first + lane), p.k, row_.data());
      for (std::int64_t c = 0; c < p.k; ++c)
        if (!std::isfinite(row_[as_size(c)])) return (first + lane) * p.k + c;
      for (std::int64_t place = 0; place < p.k; ++place)
        at(weights_)[place * lanes_ + lane] = row_[as_size(p.order[as_size(place)])];
    }
    if (p.fixed_grids)
      for (std::int64_t lane = 0; lane < rows_; ++lane) {
        for (std::int64_t place = 0; place < p.k; ++place)
          row_[as_size(p.order[as_size(place)])] = at(weights_)[place * lanes_ + lane];
        for (std::int64_t c = 0; c < p.k; c += p.block) fit(p, lane, c, row_.data() + c);
      }
    return -1;
  }

  void round(const problem& p, const block_factors& b, bool fit_first) {
    const float* weights = at(weights_) + b.begin * lanes_;
    const float* target = weights;
    if (b.reach > 0) {
      p.product.run(b.outer.data(), b.count, errors_.data(), lanes_, b.reach, at(target_), lanes_, weights, lanes_);
      target = at(target_);
    }
    if (fit_first)
      for (std::int64_t lane = 0; lane < rows_; ++lane) {
        for (std::int64_t j = 0; j < b.count; ++j) row_[as_size(j)] = target[j * lanes_ + lane];
        fit(p, lane, b.begin, row_.data());
      }
    kernels::feedback_args args;
    args.lanes = lanes_;
    args.columns = b.count;
    args.weights = weights;
    args.target = target;
    args.factors = b.inner.data();
    args.factor_stride = b.count;
    args.group = p.groups.data() + b.begin;
    args.scale = at(scale_);
    args.inverse = at(inverse_);
    args.minimum = at(minimum_);
    args.levels = p.levels.table;
    args.errors = at(errors_) + b.begin * lanes_;
    args.change = at(change_);
    args.codes = codes_.data() + b.begin * lanes_;
    p.kernels.round_columns(args);
  }

  void store(const problem& p, std::byte* out) {
    const std::size_t stride = row_bytes(p.format.type, p.k);
    for (std::int64_t lane = 0; lane < rows_; ++lane) {
      std::byte* to = out + as_size(first_ + lane) * stride;
      for (std::int64_t place = 0; place < p.k; ++place)
        row_codes_[as_size(p.order[as_size(place)])] = p.levels.codes[codes_[as_size(place * lanes_ + lane)]];
      const std::size_t step = stride / as_size(p.k / p.block);
      for (std::int64_t c = 0; c < p.k; c += p.block, to += step)
        p.format.pack(grid(p, lane, c), row_codes_.data() + c, p.block, to);
    }
  }

 private:
  static float* at(buffer& b) { return reinterpret_cast<float*>(b.mutable_data()); }
  block_grid& grid(const problem& p, std::int64_t lane, std::int64_t column) {
    return grids_[as_size(column / p.block * lanes_ + lane)];
  }

  void fit(const problem& p, std::int64_t lane, std::int64_t column, const float* x) {
    block_grid& g = grid(p, lane, column);
    p.format.fit(x, p.fit_weights.data() + column, p.block, p.method, g);
    for (std::int64_t i = 0; i < p.block / p.group; ++i) {
      const std::int64_t to = (column / p.group + i) * lanes_ + lane;
      const float scale = g.scale[as_size(i)], inverse = 1 / scale;
      at(scale_)[to] = scale;
      at(inverse_)[to] = std::isfinite(inverse) ? inverse : 0;
      at(minimum_)[to] = g.minimum[as_size(i)];
    }
  }

  std::int64_t lanes_ = 0, first_ = 0, rows_ = 0;
  buffer weights_, errors_;           ///< [k, lanes]. The errors are a panel of the f32 product.
  buffer scale_, inverse_, minimum_;  ///< [groups, lanes]
  buffer target_, change_;            ///< [columns of a block, lanes]
  std::vector<std::uint8_t> codes_;
  std::vector<block_grid> grids_;
  std::vector<float> row_;
  std::vector<std::uint8_t> row_codes_;
};

std::string indices_of(std::int64_t index, std::int64_t cols) {
  return "[" + std::to_string(index / cols) + ", " + std::to_string(index % cols) + "]";
}

result<void> check(const tensor_view& w, const gram_matrix& h, const grid_format& format, const gptq_options& options) {
  const std::int64_t k = w.dims.cols();
  if (w.dims.rank() < 2 || !w.dense() || w.dims.rows() == 0 || k == 0)
    return error{errc::invalid_argument, "error feedback takes a dense matrix, not " + w.dims.to_string(), {}};
  if (h.n != k || h.sums.size() != as_size(k * k))
    return error{
        errc::invalid_argument,
        "second moments of size " + std::to_string(h.n) + " for a matrix with " + std::to_string(k) + " columns",
        {}};
  if (!(options.damping >= 0) || !std::isfinite(options.damping) || options.sweeps < 0)
    return error{errc::invalid_argument, "damping and sweeps must not be negative", "gptq_options"};
  const std::int64_t block = std::max<std::int64_t>(format.block, info(format.type)->block_elements);
  if (k % block != 0)
    return error{
        errc::invalid_argument, std::to_string(k) + " columns are no whole blocks of " + std::to_string(block), {}};
  for (std::int64_t i = 0; i < k * k; ++i)
    if (!std::isfinite(h.sums[as_size(i)]))
      return error{errc::invalid_argument, "second moment " + indices_of(i, k) + " is no finite number", {}};
  for (std::int64_t i = 0; i < k; ++i)
    if (h.sums[as_size(i * k + i)] < 0)
      return error{errc::invalid_argument, "second moment " + indices_of(i * k + i, k) + " is negative", {}};
  return {};
}

}  // namespace

result<tensor> round_with_feedback(const tensor_view& w, const gram_matrix& activations, const grid_format& format,
                                   const gptq_options& options, const context& ctx, const control& control) {
  return detail::guarded([&]() -> result<tensor> {
    FLYWHEEL_CHECK(check(w, activations, format, options));
    const std::int64_t k = activations.n;
    const kernels::cluster isa = kernels::find_cluster(ctx.isa().selected);
    const kernels::to_f32_fn to_f32 = kernels::find_to_f32(isa, w.type);
    if (!to_f32)
      return error{errc::unsupported, "no decoder for tensors of type " + std::string(to_string(w.type)), {}};
    problem p{w,
              format,
              options.method,
              f32_product(ctx),
              kernels::select(isa),
              to_f32,
              w.dims.rows(),
              k,
              0,
              0,
              false,
              {},
              {},
              {},
              sorted_levels(format.levels),
              {}};
    p.block = format.block > 0 ? format.block : k;
    p.group = format.group > 0 ? format.group : p.block;
    p.fixed_grids = options.act_order || format.block == 0;
    p.order.resize(as_size(k));
    std::iota(p.order.begin(), p.order.end(), std::int64_t{0});
    const float* const h = activations.sums.data();
    if (options.act_order)
      std::stable_sort(p.order.begin(), p.order.end(),
                       [&](std::int64_t a, std::int64_t b) { return h[a * k + a] > h[b * k + b]; });
    for (const std::int64_t column : p.order) p.groups.push_back(static_cast<std::int32_t>(column / p.group));

    // Columns that were never active are left with the damping alone: rounded by themselves, weighing next to nothing.
    double mean = 0;
    for (std::int64_t i = 0; i < k; ++i) mean += static_cast<double>(h[i * k + i]) / static_cast<double>(k);
    if (!(mean > 0)) mean = 1;
    FLYWHEEL_TRY(buffer factor, buffer::allocate(as_size(k * k) * sizeof(float), ctx.memory()));
    const std::span<float> r{reinterpret_cast<float*>(factor.mutable_data()), as_size(k * k)};
    for (double damping = static_cast<double>(options.damping);; damping = std::max(10 * damping, 1e-4)) {
      for_tasks(ctx.executor(), k, [&](unsigned, std::int64_t i) {
        const float* const from = h + p.order[as_size(i)] * k;
        for (std::int64_t j = 0; j < k; ++j) r[as_size(i * k + j)] = from[p.order[as_size(j)]];
        r[as_size(i * k + i)] += static_cast<float>(damping * mean);
      });
      FLYWHEEL_TRY(const bool definite, factor_upper(r, k, ctx));
      if (definite) break;
      if (damping > 100)
        return error{errc::invalid_argument,
                     "the second moments are those of no activations: not symmetric, or not "
                     "positive semidefinite",
                     {}};
      if (control.stopped()) return error{errc::cancelled, "cancelled", {}};
    }
    for (std::int64_t i = 0; i < k; ++i)
      p.fit_weights.push_back(h[i * k + i] + least_fit_weight * static_cast<float>(mean));

    const std::int64_t block = p.fixed_grids ? std::min(k, free_block) : p.block;
    FLYWHEEL_TRY(sweep feedback, make_sweep(k, block, false, p.product, ctx, [&](std::int64_t j, std::int64_t i) {
                   return r[as_size(i * k + j)] / r[as_size(j * k + j)];
                 }));
    factor = {};
    p.sweeps.push_back(std::move(feedback));
    if (options.sweeps > 0) {
      FLYWHEEL_TRY(sweep descent, make_sweep(k, block, true, p.product, ctx, [&](std::int64_t j, std::int64_t i) {
                     const std::int64_t a = p.order[as_size(j)], b = p.order[as_size(i)];
                     const float own = h[a * k + a];
                     return own > 0 ? h[b * k + a] / own : 0;
                   }));
      p.sweeps.push_back(std::move(descent));
    }

    FLYWHEEL_TRY(tensor out, tensor::zeros(format.type, w.dims));
    const std::int64_t lanes = p.product.panel_cols(), panels = (p.n_out + lanes - 1) / lanes;
    const std::int64_t workers = ctx.executor().concurrency();
    const std::int64_t together = std::clamp<std::int64_t>(panels / (4 * workers), 1, most_panels);
    std::vector<std::vector<panel>> rooms(as_size(workers));
    for (auto& room : rooms)
      for (std::int64_t i = 0; i < together; ++i) {
        FLYWHEEL_TRY(panel made, panel::create(p, ctx));
        room.push_back(std::move(made));
      }
    const std::int64_t tasks = (panels + together - 1) / together;
    constexpr std::int64_t none = std::numeric_limits<std::int64_t>::max();
    std::atomic<std::int64_t> unusable{none};
    // In rounds, between which progress is told and a stop is seen.
    for (std::int64_t done = 0, round = 4 * workers; done < tasks; done += round) {
      if (control.stopped()) return error{errc::cancelled, "cancelled", {}};
      if (control.progress)
        control.progress(static_cast<std::uint64_t>(done), static_cast<std::uint64_t>(tasks), "rounding");
      for_tasks(ctx.executor(), std::min(round, tasks - done), [&](unsigned slot, std::int64_t task) {
        const std::int64_t first = (done + task) * together, count = std::min(together, panels - first);
        std::vector<panel>& room = rooms[slot];
        for (std::int64_t i = 0; i < count; ++i)
          if (const std::int64_t bad = room[as_size(i)].load(p, (first + i) * lanes); bad >= 0) {
            std::int64_t known = unusable;
            while (bad < known && !unusable.compare_exchange_weak(known, bad)) {
            }
            return;
          }
        for (std::int32_t s = 0; s <= options.sweeps; ++s)
          for (const block_factors& b : p.sweeps[s == 0 ? 0 : 1])
            for (std::int64_t i = 0; i < count; ++i) room[as_size(i)].round(p, b, s == 0 && !p.fixed_grids);
        for (std::int64_t i = 0; i < count; ++i) room[as_size(i)].store(p, out.view().data);
      });
      if (unusable != none)
        return error{errc::invalid_argument, "weight " + indices_of(unusable, k) + " is no finite number", {}};
    }
    return out;
  });
}

}  // namespace flywheel::inline v0::quant
