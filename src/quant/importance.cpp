#include "flywheel/quant/importance.hpp"

#include <algorithm>
#include <cmath>

#include "flywheel/detail/try.hpp"
#include "src/quant/importance_observer.hpp"
#include "src/quant/observed_run.hpp"

namespace flywheel::inline v0::quant {
namespace {

constexpr std::int64_t strip = 256;       ///< Columns at a time: their sums stay in L1.
constexpr std::int64_t few_rows = 32;     ///< Added up in f32; these sums then in f64.
constexpr std::int64_t share_grain = 16;  ///< Floats of a cache line: workers do not share one.

/// Adds x^2 of `rows` rows to sums [cols].
void add_squares(const float* x, std::int64_t rows, std::int64_t stride, std::int64_t cols, double* sums) {
  float part[strip];
  for (std::int64_t first = 0; first < rows; first += few_rows) {
    std::fill_n(part, cols, 0.0F);
    for (std::int64_t r = first; r < std::min(rows, first + few_rows); ++r) {
      const float* row = x + r * stride;
      for (std::int64_t c = 0; c < cols; ++c) part[c] += row[c] * row[c];
    }
    for (std::int64_t c = 0; c < cols; ++c) sums[c] += static_cast<double>(part[c]);
  }
}

}  // namespace

void importance_observer::begin(std::span<const device::observation_point> points) {
  points_.clear();
  for (const device::observation_point& p : points) {
    const auto matrices = static_cast<std::size_t>(std::max<std::int64_t>(1, p.n_experts));
    points_.push_back(
        {p, std::vector<double>(matrices * static_cast<std::size_t>(p.cols)), std::vector<std::int64_t>(matrices)});
  }
}

void importance_observer::observe(const device::observed_rows& seen, unsigned worker, unsigned workers) noexcept {
  sums& s = points_[seen.point];
  if (worker == 0) s.rows[static_cast<std::size_t>(seen.expert)] += seen.rows;
  const std::int64_t grains = (seen.cols + share_grain - 1) / share_grain;
  const std::int64_t begin = grains * worker / workers * share_grain;
  const std::int64_t end = std::min(seen.cols, grains * (worker + 1) / workers * share_grain);
  for (std::int64_t c = begin; c < end; c += strip)
    add_squares(seen.x + c, seen.rows, seen.cols, std::min(strip, end - c),
                s.squares.data() + seen.expert * seen.cols + c);
}

result<importance_matrix> importance_observer::take() const {
  importance_matrix out;
  for (const sums& s : points_) {
    for (const std::string& name : s.point.weights) {
      importance_entry& e = out.entries[name];
      e.cols = s.point.cols;
      e.sums.resize(s.squares.size());
      e.counts.resize(s.rows.size());
      for (std::size_t i = 0; i < s.squares.size(); ++i) {
        e.sums[i] += static_cast<float>(s.squares[i]);
        if (!std::isfinite(e.sums[i]))
          return error{errc::invalid_argument,
                       "what goes into column " + std::to_string(i % static_cast<std::size_t>(e.cols)) +
                           " is not finite; the model's weights are damaged",
                       name};
      }
      for (std::size_t m = 0; m < s.rows.size(); ++m) e.counts[m] += static_cast<float>(s.rows[m]);
    }
  }
  // What no row went into says nothing.
  std::erase_if(out.entries, [](const auto& e) {
    return std::all_of(e.second.counts.begin(), e.second.counts.end(), [](float n) { return n == 0; });
  });
  return out;
}

std::vector<float> importance_matrix::of(std::string_view tensor) const {
  const auto found = entries.find(tensor);
  if (found == entries.end()) return {};
  const importance_entry& e = found->second;
  std::vector<float> means(e.sums.size());
  for (std::size_t i = 0; i < means.size(); ++i) {
    const float count = e.counts[i / static_cast<std::size_t>(e.cols)];
    means[i] = count > 0 ? e.sums[i] / count : 1;
  }
  return means;
}

result<importance_matrix> collect_importance(const io::archive& file, std::string_view text,
                                             const importance_options& options) {
  return detail::guarded([&]() -> result<importance_matrix> {
    const auto observer = std::make_shared<importance_observer>();
    observed_run run;
    FLYWHEEL_TRY(run.ctx, options.context.or_default());
    run.text = text;
    run.chunk = options.chunk;
    run.max_chunks = options.max_chunks;
    run.observer = observer;
    run.control = options.control;
    run.what = "importance";
    FLYWHEEL_TRY(const std::uint32_t windows, run_observed(file, run));
    FLYWHEEL_TRY(importance_matrix out, observer->take());
    if (!options.dataset.empty()) out.datasets.push_back(options.dataset);
    out.chunks = windows;
    out.chunk_size = static_cast<std::uint32_t>(options.chunk);
    return out;
  });
}

}  // namespace flywheel::inline v0::quant
