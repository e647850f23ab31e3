// Roofs: what this machine can do at best on a number of threads, for kernels and models to be held against.
//
// Each roof is measured in many short bursts spread over a run, and the best one counts. A busy machine takes cores
// away for milliseconds at a time: bursts in between see the whole machine, and a slow burst can only make the roof
// lower, hence a percentage look better, if all of them were slow. So measure before and after everything that is
// compared.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/executor.hpp"
#include "src/measure/timing.hpp"

namespace flywheel::inline v0::kernels {
struct kernel_set;
}

namespace flywheel::inline v0::measure {

/// Operations per second (a multiplication and an addition are two) and bytes per second; 0: not measured, or the
/// instruction set has no such instruction.
struct roofs {
  double int8 = 0, f32 = 0, bf16 = 0, read = 0;
};

class FLYWHEEL_API roof_meter {
 public:
  /// `isa`: a cluster of isa_report that was built and detected. `area`: what reading rotates over, 64-byte aligned, at
  /// least 4 KiB per thread, with pages that exist; it and `pool` must outlive the meter. `clock` other than
  /// wall_seconds is for executors of one thread.
  roof_meter(executor& pool, std::string_view isa, std::span<const std::byte> area, clock_fn clock = wall_seconds);

  /// Measures everything for some 40 milliseconds.
  void measure();
  /// The same for one roof.
  void measure_compute();
  void measure_read();

  /// The best so far.
  [[nodiscard]] const roofs& best() const noexcept { return best_; }
  /// The median of all reading bursts: how steady the memory was.
  [[nodiscard]] double median_read() const;

 private:
  /// Units per second of all threads together, body(thread) being the units of one.
  [[nodiscard]] double burst(function_ref<double(unsigned)> body) const;

  executor* pool_;
  const kernels::kernel_set* kernels_;
  std::span<const std::byte> area_;
  clock_fn clock_;
  std::size_t at_ = 0;  ///< Where the next reading burst begins, in each thread's part.
  roofs best_;
  std::vector<double> reads_;
};

/// Memory of `bytes` (0: uncached_bytes()) whose pages exist, each first touched by the thread that will read it.
/// Error: out_of_memory.
[[nodiscard]] FLYWHEEL_API result<buffer> make_area(executor& pool, std::size_t bytes = 0);

/// Cycles per second: a chain of dependent additions, of which every CPU does one per cycle. On the calling thread.
[[nodiscard]] FLYWHEEL_API double measure_clock();
/// Seconds to hand an empty body to all threads of a pool and have them back; the best of several, like all here.
[[nodiscard]] FLYWHEEL_API double measure_dispatch(executor& pool);
/// Seconds per barrier of all threads of a pool; 0 when it cannot run them at the same time.
[[nodiscard]] FLYWHEEL_API double measure_barrier(executor& pool);

}  // namespace flywheel::inline v0::measure
