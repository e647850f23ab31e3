#include "src/measure/roofs.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "flywheel/detail/barrier.hpp"
#include "flywheel/detail/try.hpp"
#include "kernels/registry.hpp"
#include "src/measure/machine.hpp"

namespace flywheel::inline v0::measure {
namespace {

// Short enough that some bursts see all cores even on a busy machine.
constexpr int bursts = 32, least_bursts = 4;
constexpr double longest = 0.03;              ///< Seconds for all bursts, where waiting for cores makes them slow.
constexpr std::int64_t burst_rounds = 20000;  ///< 40 to 120 microseconds.
constexpr std::size_t read_window = std::size_t{8} << 20;  ///< Bytes that one thread reads in one burst.
constexpr std::size_t read_unit = 4096;

}  // namespace

result<buffer> make_area(executor& pool, std::size_t bytes) {
  const unsigned threads = pool.concurrency();
  const std::size_t each = std::max<std::size_t>(
      read_unit, static_cast<std::size_t>(bytes ? bytes : uncached_bytes()) / threads / read_unit * read_unit);
  FLYWHEEL_TRY(buffer made, buffer::allocate(each * threads));
  pool.run(threads, [&](unsigned t) { std::memset(made.mutable_data() + t * each, 1, each); });
  return made;
}

roof_meter::roof_meter(executor& pool, std::string_view isa, std::span<const std::byte> area, clock_fn clock)
    : pool_(&pool), kernels_(&kernels::select(kernels::find_cluster(isa))), area_(area), clock_(clock) {}

double roof_meter::burst(function_ref<double(unsigned)> body) const {
  const unsigned threads = pool_->concurrency();
  if (threads > 1 && !pool_->gang()) {
    std::atomic<double> units = 0;
    const double time = timed([&] { pool_->run(threads, [&](unsigned t) { units = body(t); }); }, clock_);
    return units * threads / time;
  }
  // All begin at once, and waking them up does not count.
  detail::barrier together(threads, patient_spins(threads));
  double units = 0, time = 0;
  pool_->run(threads, [&](unsigned t) {
    together.arrive_and_wait();
    const double start = t == 0 ? clock_() : 0;
    const double own = body(t);
    together.arrive_and_wait();
    if (t != 0) return;
    time = std::max(clock_() - start, 1e-9);
    units = own;
  });
  return units * threads / time;
}

void roof_meter::measure_compute() {
  const auto raise = [&](double& roof, double (*body)(std::int64_t)) {
    roof = std::max(roof, burst([&](unsigned) { return body(burst_rounds); }));
  };
  const double start = wall_seconds();
  for (int i = 0; i < bursts && (i < least_bursts || wall_seconds() - start < longest); ++i) {
    raise(best_.int8, kernels_->int8_dots);
    raise(best_.f32, kernels_->f32_fmas);
    raise(best_.bf16, kernels_->bf16_dots);
  }
}

void roof_meter::measure_read() {
  const std::size_t each = area_.size() / pool_->concurrency() / read_unit * read_unit;
  const std::size_t window = std::min(read_window, each);
  const double start = wall_seconds();
  for (int i = 0; i < bursts && (i < least_bursts || wall_seconds() - start < longest); ++i) {
    if (at_ + window > each) at_ = 0;
    reads_.push_back(burst([&](unsigned t) { return kernels_->read_pass(area_.data() + t * each + at_, window); }));
    at_ += window;
    best_.read = std::max(best_.read, reads_.back());
  }
}

void roof_meter::measure() {
  measure_compute();
  measure_read();
}

double roof_meter::median_read() const { return reads_.empty() ? 0 : spread_of(reads_).median; }

double measure_clock() {
  constexpr int unrolled = 8, rounds = 80000;
  double best = 0;
  for (int i = 0; i < 10; ++i) {
    // A register, not a constant: some CPUs add small constants without executing anything.
    std::size_t x = 0, step = 3;
    asm volatile("" : "+r"(step));
    const double time = timed([&] {
      for (int round = 0; round < rounds; ++round)
        for (int j = 0; j < unrolled; ++j) {
          x += step;
          asm volatile("" : "+r"(x));
        }
    });
    best = std::max(best, unrolled * rounds / time);
  }
  return best;
}

double measure_dispatch(executor& pool) {
  constexpr int batch = 10;
  double best = 1;
  for (int i = 0; i < 50; ++i)
    best = std::min(best, timed([&] {
                            for (int j = 0; j < batch; ++j) pool.run(pool.concurrency(), [](unsigned) {});
                          }) / batch);
  return best;
}

double measure_barrier(executor& pool) {
  if (!pool.gang() && pool.concurrency() > 1) return 0;
  constexpr int phases = 100;
  double best = 1;
  for (int i = 0; i < 50; ++i) {
    detail::barrier together(pool.concurrency());
    best = std::min(best, timed([&] {
                            pool.run(pool.concurrency(), [&](unsigned) {
                              for (int phase = 0; phase < phases; ++phase) together.arrive_and_wait();
                            });
                          }) / phases);
  }
  return best;
}

}  // namespace flywheel::inline v0::measure
