// Locks that are nothing in builds without threads.
#pragma once

#include <chrono>
#include <cstdint>

#include "src/core/platform.hpp"

#if FLYWHEEL_HAS_THREADS
#  include <condition_variable>
#  include <mutex>
#  include <thread>
#endif

namespace flywheel::inline v0::device::simulation {

using steady = std::chrono::steady_clock;

#if FLYWHEEL_HAS_THREADS
using mutex = std::mutex;
using unique_lock = std::unique_lock<std::mutex>;
using condition = std::condition_variable;
using thread_id = std::thread::id;
inline thread_id this_thread() noexcept { return std::this_thread::get_id(); }
#else
struct mutex {};
struct unique_lock {
  explicit unique_lock(mutex&) noexcept {}
  void lock() noexcept {}
  void unlock() noexcept {}
};
struct condition {
  void notify_all() noexcept {}
};
using thread_id = int;
inline thread_id this_thread() noexcept { return 0; }
#endif

}  // namespace flywheel::inline v0::device::simulation
