// What a thread does while it waits for another that is about to be ready; not part of the promise.
#pragma once

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::detail {

/// Tells the CPU that this is a waiting loop (10 to 140 cycles, depending on the CPU).
inline void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ volatile("yield" ::: "memory");
#endif
}

/// Lets another thread have this core, when one wants it.
FLYWHEEL_API void yield() noexcept;

}  // namespace flywheel::inline v0::detail
