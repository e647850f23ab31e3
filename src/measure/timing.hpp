// Clocks, and what repetitions amount to.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <vector>

#include "flywheel/core/executor.hpp"

namespace flywheel::inline v0::measure {

/// Seconds on some clock; only differences mean something.
using clock_fn = double (*)();

inline double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
/// Processor time of this program: does not pass while others have the core. For work on one thread.
inline double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

/// How long a call takes; never 0, so that it can be divided by.
template <class Body>
double timed(Body&& body, clock_fn clock = wall_seconds) {
  const double start = clock();
  body();
  return std::max(clock() - start, 1e-9);
}

/// For a detail::barrier in what is measured: longer than other programs take a core away for, unless there are more
/// workers than cores, which then wait for each other.
inline std::uint32_t patient_spins(unsigned workers) { return workers <= usable_cores() ? 200000 : 1000; }

struct spread {
  double median = 0, min = 0, max = 0;
};

/// Of at least one number.
inline spread spread_of(std::vector<double> all) {
  std::sort(all.begin(), all.end());
  const std::size_t n = all.size();
  return {(all[(n - 1) / 2] + all[n / 2]) / 2, all.front(), all.back()};
}

}  // namespace flywheel::inline v0::measure
