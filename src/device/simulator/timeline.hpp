// Simulated time. Everything is counted in cycles of the device.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "src/device/simulator/program.hpp"

namespace flywheel::inline v0::device::simulation {

/// When queues, DMA engine and host are free. Submissions are placed in the order in which they are made, so that
/// simulated time does not depend on what this machine does.
class timeline {
 public:
  /// The host: it submits at this time.
  std::uint64_t host = 0;

  /// Places a program that may start at `ready` on the queue that is free first, and returns its end. Calls
  /// on_op(queue, op, begin, launch) for each operation, `launch` being the cycles of the launch before it, if any.
  template <class F>
  std::uint64_t place(const profile& p, const program& what, std::uint64_t ready, F&& on_op) noexcept {
    const auto queue = std::min_element(queue_free_.begin(), queue_free_.begin() + p.queues);
    std::uint64_t launch = p.launch_cycles();
    std::uint64_t now = std::max({host, ready, *queue}) + launch;
    for (const operation& op : what.ops) {
      // Queues share the engine: what it is busy with delays the operation as a whole.
      const std::uint64_t begin = std::max(now, dma_free_);
      on_op(static_cast<std::uint32_t>(queue - queue_free_.begin()), op, begin, launch);
      dma_free_ = begin + op.price.dma;
      now = begin + op.price.cycles;
      launch = 0;
    }
    return *queue = now;
  }

 private:
  std::uint64_t dma_free_ = 0;
  std::array<std::uint64_t, max_queues> queue_free_{};
};

}  // namespace flywheel::inline v0::device::simulation
