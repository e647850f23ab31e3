#include "src/measure/hardware.hpp"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "flywheel/detail/try.hpp"
#include "kernels/registry.hpp"
#include "src/measure/matmul.hpp"
#include "src/measure/random_weights.hpp"

namespace flywheel::inline v0::measure {
namespace {

using kernels::matmul_kernel;

bool can_multiply(dtype type) {
  return can_make_rows(type) && kernels::find_matmul(kernels::cluster::generic, type) != nullptr;
}

/// One run: its steps count for the progress bar and look at the stop token.
class survey {
 public:
  survey(const hardware_options& options, hardware_report& report) : options_(options), out_(report) {}

  result<void> run() {
    FLYWHEEL_TRY(out_.isa, detect_isa(options_.isa));
    isa_ = kernels::find_cluster(out_.isa.selected);
    FLYWHEEL_TRY(pool_, make_thread_team(options_.threads));
    for (unsigned t = 1; t < pool_->concurrency(); t *= 2) counts_.push_back(t);
    counts_.push_back(pool_->concurrency());
    steps_ = 1 + counts_.size() + options_.formats.size() * options_.shapes.size() * (options_.rows.size() + 1) +
             options_.prefetch.size();
    describe();
    FLYWHEEL_CHECK(step("clock and threads"));
    FLYWHEEL_TRY(area_, make_area(*pool_, options_.bytes));
    out_.bytes = area_.size();
    out_.huge_part = static_cast<double>(std::min<std::uint64_t>(huge_page_bytes(), area_.size())) /
                     static_cast<double>(area_.size());
    out_.clock = measure_clock();
    out_.dispatch = measure_dispatch(*pool_);
    out_.barrier = measure_barrier(*pool_);
    FLYWHEEL_CHECK(scaling());
    meter_.emplace(*pool_, out_.isa.selected, area_.bytes());
    for (const product_shape& shape : options_.shapes)
      for (const dtype type : options_.formats) FLYWHEEL_CHECK(products(type, shape));
    FLYWHEEL_CHECK(prefetch());
    finish();
    return {};
  }

 private:
  void describe() {
    out_.caches = find_caches();
    out_.memory = find_memory();
    out_.huge_pages = huge_page_setting();
    out_.load = load_average();
    out_.threads = pool_->concurrency();
  }

  result<void> step(std::string_view what) {
    if (options_.control.stop.stop_requested()) return error{errc::cancelled, "cancelled", {}};
    if (options_.control.progress) options_.control.progress(done_++, steps_, what);
    return {};
  }

  /// The format of a 4-bit product where it is asked for, else the first one: what scaling and prefetching look at.
  [[nodiscard]] dtype usual_format() const {
    const auto& all = options_.formats;
    return std::find(all.begin(), all.end(), dtype::q4_0) != all.end() ? dtype::q4_0 : all.front();
  }
  [[nodiscard]] std::int64_t most_rows() const { return *std::max_element(options_.rows.begin(), options_.rows.end()); }

  result<matmul_workload> workload(dtype type, product_shape shape, executor& pool) {
    const matmul_kernel* kernel = kernels::find_matmul(isa_, type);
    if (kernel == nullptr || shape.k % info(type)->block_elements != 0 || shape.n <= 0 || shape.k <= 0)
      return error{errc::invalid_argument, "no product of this shape and type", std::string(to_string(type))};
    return matmul_workload::create(*kernel, shape.n, shape.k, most_rows(), area_.mutable_bytes(), pool);
  }

  result<void> scaling() {
    for (const unsigned threads : counts_) {
      FLYWHEEL_CHECK(step(std::to_string(threads) + (threads == 1 ? " thread" : " threads")));
      std::shared_ptr<executor> team = pool_;
      if (threads != pool_->concurrency()) {
        FLYWHEEL_TRY(team, make_thread_team(threads));
      }
      roof_meter meter(*team, out_.isa.selected, area_.bytes());
      meter.measure();
      FLYWHEEL_TRY(matmul_workload work, workload(usual_format(), options_.shapes.front(), *team));
      scaling_figures f;
      f.threads = threads;
      const auto best = [&](std::int64_t m) {
        work.run(m, 1);
        return time_products(work, m, options_.seconds * 6).min;
      };
      f.prefill = work.operations(most_rows()) / best(most_rows());
      f.decode = static_cast<double>(work.matrix_bytes()) / best(1);
      meter.measure();
      f.best = meter.best();
      f.median_read = meter.median_read();
      out_.scaling.push_back(f);
    }
    return {};
  }

  result<void> products(dtype type, product_shape shape) {
    const std::string what =
        std::string(to_string(type)) + " " + std::to_string(shape.n) + "x" + std::to_string(shape.k);
    FLYWHEEL_CHECK(step("packing " + what));
    FLYWHEEL_TRY(matmul_workload work, workload(type, shape, *pool_));
    const matmul_kernel& kernel = *kernels::find_matmul(isa_, type);
    if (shape.n == options_.shapes.front().n && shape.k == options_.shapes.front().k) {
      double best = 1e9;
      for (int i = 0; i < 3; ++i) best = std::min(best, timed([&] { work.pack(); }));
      out_.packs.push_back({type, static_cast<double>(work.source_bytes()) / best});
    }
    for (const std::int64_t m : options_.rows) {
      FLYWHEEL_CHECK(step(what));
      product_figures p;
      p.weight = type;
      p.kernel = kernel.name;
      p.shape = shape;
      p.m = m;
      p.int8 = kernel.prepared.name.starts_with("q8");
      meter_->measure_compute();
      work.run(m, 1);
      p.max_error = work.max_error(m);
      p.seconds = time_products(work, m, options_.seconds);
      p.operations = work.operations(m);
      p.bytes = static_cast<double>(work.matrix_bytes());
      out_.products.push_back(std::move(p));
    }
    meter_->measure_read();
    return {};
  }

  result<void> prefetch() {
    FLYWHEEL_TRY(matmul_workload work, workload(usual_format(), options_.shapes.front(), *pool_));
    out_.prefetch_weight = usual_format();
    std::vector<double> best(options_.prefetch.size(), 1e9);
    work.run(1, 1);
    // Round by round, so that a slow moment does not decide against one distance.
    for (int round = 0; round < 3; ++round)
      for (std::size_t i = 0; i < best.size(); ++i) {
        if (round == 0) FLYWHEEL_CHECK(step("prefetch distances"));
        best[i] = std::min(best[i], time_products(work, 1, options_.seconds / 2, options_.prefetch[i]).min);
      }
    for (std::size_t i = 0; i < best.size(); ++i)
      out_.prefetch.push_back({options_.prefetch[i], static_cast<double>(work.matrix_bytes()) / best[i]});
    return {};
  }

  /// Percentages, once the whole run has shown how high the roofs are.
  void finish() {
    roofs& top = out_.scaling.back().best;
    const roofs& later = meter_->best();
    top = {std::max(top.int8, later.int8), std::max(top.f32, later.f32), std::max(top.bf16, later.bf16),
           std::max(top.read, later.read)};
    for (product_figures& p : out_.products) {
      p.pct_compute = 100 * p.operations / p.seconds.min / (p.int8 ? top.int8 : top.f32);
      p.pct_read = 100 * p.bytes / p.seconds.min / top.read;
    }
    const auto fewest = [&](double scaling_figures::*what) {
      double most = 0;
      for (const scaling_figures& f : out_.scaling) most = std::max(most, f.*what);
      return std::find_if(out_.scaling.begin(), out_.scaling.end(),
                          [&](const scaling_figures& f) { return f.*what >= 0.97 * most; })
          ->threads;
    };
    out_.prefill_threads = fewest(&scaling_figures::prefill);
    out_.decode_threads = fewest(&scaling_figures::decode);
  }

  const hardware_options& options_;
  hardware_report& out_;
  kernels::cluster isa_{};
  std::shared_ptr<executor> pool_;
  std::vector<unsigned> counts_;
  buffer area_;
  std::optional<roof_meter> meter_;
  std::uint64_t done_ = 0, steps_ = 0;
};

}  // namespace

std::vector<dtype> product_formats() {
  std::vector<dtype> all;
  for (const matmul_kernel& kernel : kernels::all_matmul_kernels())
    if (can_multiply(kernel.weight) && std::find(all.begin(), all.end(), kernel.weight) == all.end())
      all.push_back(kernel.weight);
  return all;
}

result<hardware_report> measure_hardware(const hardware_options& options) {
  return detail::guarded([&]() -> result<hardware_report> {
    if (options.formats.empty() || options.shapes.empty() || options.rows.empty())
      return error{errc::invalid_argument, "nothing to measure", {}};
    hardware_report report;
    FLYWHEEL_CHECK(survey(options, report).run());
    return report;
  });
}

}  // namespace flywheel::inline v0::measure
