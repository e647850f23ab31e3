#include "flywheel/quant/calibration.hpp"

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/graph/rewrite.hpp"
#include "src/quant/model_graph.hpp"
#include "src/quant/moments_observer.hpp"
#include "src/quant/observed_run.hpp"

namespace flywheel::inline v0::quant {
namespace {

constexpr std::int64_t tile = 192;       ///< Rows and columns of the sums: whole tiles and panels of every cluster.
constexpr std::int64_t most_rows = 256;  ///< Added in one product.

void mirror(gram_matrix& gram) {
  for (std::int64_t a = 0; a < gram.n; ++a)
    for (std::int64_t b = a + 1; b < gram.n; ++b)
      gram.sums[as_size(b * gram.n + a)] = gram.sums[as_size(a * gram.n + b)];
}

/// The tensors whose rows are also looked up: a tied output head.
result<std::vector<std::string>> tables_of(const io::archive& file) {
  FLYWHEEL_TRY(const model_graph g, model_graph::read(file));
  std::vector<std::string> names;
  for (const graph::node& n : g.whole.nodes)
    if (const graph::weight_info* w = n.kind == graph::op::embed ? g.whole.weight_of(n.inputs[0]) : nullptr)
      names.push_back(w->name);
  return names;
}

/// A row that is looked up puts its own error into the stream: as if one-hot inputs were seen, too, with as much energy
/// as the others.
void add_lookups(gram_matrix& gram) {
  double mean = 0;
  for (std::int64_t i = 0; i < gram.n; ++i)
    mean += static_cast<double>(gram.sums[as_size(i * gram.n + i)]) / static_cast<double>(gram.n);
  for (std::int64_t i = 0; i < gram.n; ++i) gram.sums[as_size(i * gram.n + i)] += static_cast<float>(mean);
}

}  // namespace

moments_observer::moments_observer(const context& ctx, std::function<bool(std::string_view)> wants)
    : product_(ctx), wants_(std::move(wants)) {
  const std::size_t bytes =
      product_.prepared_bytes(tile, most_rows) + product_.panel_bytes(most_rows) * as_size(product_.panels(tile));
  for (unsigned i = 0; i < ctx.executor().concurrency(); ++i) {
    auto room = buffer::allocate(bytes, ctx.memory());
    if (!room) throw std::bad_alloc();  // collect_moments is guarded
    scratch_.push_back(*std::move(room));
  }
}

bool moments_observer::wants(const device::observation_point& point) const {
  return !wants_ || std::any_of(point.weights.begin(), point.weights.end(), wants_);
}

void moments_observer::begin(std::span<const device::observation_point> points) {
  places_.clear();
  for (const device::observation_point& point : points) {
    place& p = places_.emplace_back();
    p.point = point;
    if (!wants(point)) continue;
    p.moments.matrices.resize(as_size(std::max<std::int64_t>(1, point.n_experts)));
    for (gram_matrix& gram : p.moments.matrices) {
      gram.n = point.cols;
      gram.sums.assign(as_size(point.cols * point.cols), 0);
    }
  }
}

void moments_observer::observe(const device::observed_rows& seen, unsigned worker, unsigned workers) noexcept {
  gram_matrix& gram = places_[seen.point].moments.matrices[as_size(seen.expert)];
  if (worker == 0) gram.rows += static_cast<double>(seen.rows);
  const std::int64_t n = gram.n, tiles = (n + tile - 1) / tile, pairs = tiles * (tiles + 1) / 2;
  const std::int64_t begin = pairs * worker / workers, end = pairs * (worker + 1) / workers;
  std::byte* const prepared = scratch_[worker % scratch_.size()].mutable_data();
  std::byte* const panels = prepared + product_.prepared_bytes(tile, most_rows);
  for (std::int64_t first = 0; first < seen.rows; first += most_rows) {
    const std::int64_t rows = std::min(most_rows, seen.rows - first);
    const float* const x = seen.x + first * seen.cols;
    std::int64_t a = 0, b = 0, ready = -1;
    for (std::int64_t pair = 0; pair < end; ++pair) {
      if (pair >= begin) {
        const std::int64_t height = std::min(tile, n - a * tile), width = std::min(tile, n - b * tile);
        if (std::exchange(ready, a) != a) product_.prepare_columns(x + a * tile, seen.cols, height, rows, prepared);
        product_.pack_columns(x + b * tile, seen.cols, width, rows, panels);
        float* const y = gram.sums.data() + a * tile * n + b * tile;
        product_.run(prepared, height, panels, width, rows, y, n, y, n);
      }
      if (++b == tiles) b = ++a;
    }
  }
}

result<moments_by_tensor> moments_observer::take() {
  moments_by_tensor out;
  for (place& p : std::exchange(places_, {})) {
    if (p.moments.matrices.empty()) continue;
    if (p.moments.matrices.size() > 1) {
      p.moments.all.n = p.point.cols;
      p.moments.all.sums.assign(as_size(p.point.cols * p.point.cols), 0);
    }
    for (gram_matrix& gram : p.moments.matrices) {
      for (std::size_t i = 0; i < gram.sums.size(); ++i)
        if (!std::isfinite(gram.sums[i]))
          return error{errc::invalid_argument,
                       "what goes into column " + std::to_string(i % as_size(gram.n)) + " is not finite",
                       p.point.weights.front()};
      mirror(gram);
      if (p.moments.matrices.size() == 1) continue;
      p.moments.all.rows += gram.rows;
      for (std::size_t i = 0; i < gram.sums.size(); ++i) p.moments.all.sums[i] += gram.sums[i];
    }
    const auto shared = std::make_shared<const tensor_moments>(std::move(p.moments));
    for (const std::string& name : p.point.weights) out.emplace(name, shared);
  }
  return out;
}

result<moments_by_tensor> collect_moments(const io::archive& file, std::string_view text,
                                          const calibration_options& options) {
  return detail::guarded([&]() -> result<moments_by_tensor> {
    observed_run run;
    FLYWHEEL_TRY(run.ctx, options.context.or_default());
    const auto observer = std::make_shared<moments_observer>(run.ctx, options.wants);
    run.text = text;
    run.chunk = options.chunk;
    run.max_chunks = options.max_chunks;
    run.observer = observer;
    run.control = options.control;
    run.what = "second moments";
    FLYWHEEL_CHECK(run_observed(file, run));
    FLYWHEEL_TRY(moments_by_tensor out, observer->take());
    FLYWHEEL_TRY(const std::vector<std::string> tables, tables_of(file));
    for (const std::string& name : tables)
      if (const auto found = out.find(name); found != out.end()) {
        auto changed = std::make_shared<tensor_moments>(*found->second);
        for (gram_matrix& gram : changed->matrices) add_lookups(gram);
        found->second = std::move(changed);
      }
    return out;
  });
}

result<std::vector<std::vector<std::string>>> plan_passes(const io::archive& file, std::uint64_t bytes) {
  return detail::guarded([&]() -> result<std::vector<std::vector<std::string>>> {
    FLYWHEEL_TRY(const model_graph g, model_graph::read(file));
    std::vector<graph::tap_point> points;
    graph::find_tap_points(g.whole, points);
    std::vector<std::vector<std::string>> passes;
    std::uint64_t taken = 0;
    for (const graph::tap_point& p : points) {
      const auto n = static_cast<std::uint64_t>(p.cols);
      const std::uint64_t own =
          n * n * sizeof(float) * static_cast<std::uint64_t>(p.n_experts > 0 ? p.n_experts + 1 : 1);
      if (passes.empty() || taken + own > bytes) {
        passes.emplace_back();
        taken = 0;
      }
      taken += own;
      passes.back().insert(passes.back().end(), p.weights.begin(), p.weights.end());
    }
    return passes;
  });
}

}  // namespace flywheel::inline v0::quant
