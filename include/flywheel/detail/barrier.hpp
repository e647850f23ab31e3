// A barrier for the bodies of one executor::run(): all have arrived before any goes on; not part of the promise.
#pragma once

#include <atomic>
#include <cstdint>

#include "flywheel/detail/spin.hpp"

namespace flywheel::inline v0::detail {

/// For `participants` threads that truly run at the same time (executor::gang()), any number of times. What a thread
/// wrote before arriving is visible to all after it. Waiting spins for some tens of microseconds, then yields: it is
/// meant for bodies that arrive at nearly the same time, and stays correct when the system takes a core away.
class barrier {
 public:
  /// `spins`: how long to wait before yielding; more only where being slow matters more than the other programs do.
  explicit barrier(std::uint32_t participants, std::uint32_t spins = 1000) noexcept
      : participants_(participants), spins_(spins) {}
  barrier(const barrier&) = delete;
  barrier& operator=(const barrier&) = delete;

  void arrive_and_wait() noexcept {
    if (participants_ <= 1) return;
    // Nobody can complete this phase before we arrive, so the value read here is this phase's.
    const std::uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == participants_) {
      arrived_.store(0, std::memory_order_relaxed);  // ordered before the next phase's arrivals by the release below
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (std::uint32_t i = 0; phase_.load(std::memory_order_acquire) == phase; ++i) {
      if (i < spins_) {
        pause();
      } else {
        yield();
        i = spins_;  // never wraps round to spinning
      }
    }
  }

 private:
  // Arrivals and waiting touch different lines, so that waiters do not slow the late ones down.
  alignas(64) std::atomic<std::uint32_t> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> phase_{0};
  const std::uint32_t participants_, spins_;
};

}  // namespace flywheel::inline v0::detail
