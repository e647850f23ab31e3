// What happened when, in simulated time, and its file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "flywheel/core/result.hpp"
#include "src/device/simulator/cost.hpp"

namespace flywheel::inline v0::device::simulation {

struct trace_event {
  enum class kind : std::uint8_t { host, launch, matmul, transfer };
  kind what = kind::host;
  std::uint32_t queue = 0;
  std::uint64_t submission = 0;         ///< Number of it, from 1.
  std::uint64_t begin = 0, cycles = 0;  ///< On the line of the trace.
  product of = {};                      ///< Of matmul and transfer.
  std::uint64_t busy = 0, bytes = 0;    ///< Cycles in which the matrix unit worked; bytes moved.
  std::uint64_t tile_multiply_adds = 0;
};

/// Not thread-safe.
class trace_log {
 public:
  /// Room for so many events, less if there is no memory for it; add() then allocates nothing.
  void start(std::uint64_t limit) noexcept;
  void add(const trace_event& e) noexcept;
  [[nodiscard]] const std::vector<trace_event>& events() const noexcept { return events_; }
  [[nodiscard]] std::uint64_t dropped() const noexcept { return dropped_; }
  [[nodiscard]] bool on() const noexcept { return events_.capacity() > 0; }

 private:
  std::vector<trace_event> events_;
  std::uint64_t limit_ = 0, dropped_ = 0;
};

/// Errors: io, not_found, invalid_argument (the path), out_of_memory.
[[nodiscard]] result<void> write_chrome_trace(const profile& p, const std::vector<trace_event>& events,
                                              std::uint64_t dropped, const std::filesystem::path& file);

}  // namespace flywheel::inline v0::device::simulation
