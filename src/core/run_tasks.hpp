// Tasks that may fail, on all workers.
#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>
#include <optional>
#include <utility>

#include "flywheel/core/executor.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::detail {

/// Calls task(index, worker) for index 0 .. tasks-1, in this order as workers get free, workers 0 .. workers-1. The
/// error is that of the first task that has one, whoever comes first; what tasks throw is an error too.
inline result<void> run_tasks(executor& pool, unsigned workers, std::size_t tasks,
                              function_ref<result<void>(std::size_t index, unsigned worker)> task) {
  std::atomic<std::size_t> next{0};
  std::mutex guard;
  std::size_t failed_at = static_cast<std::size_t>(-1);
  std::optional<error> failure;
  pool.run(workers, [&](unsigned worker) {
    for (std::size_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      const result<void> done = guarded([&] { return task(index, worker); });
      if (done) continue;
      const std::scoped_lock lock(guard);
      if (index < failed_at) failed_at = index, failure = done.error();
    }
  });
  if (failure) return *std::move(failure);
  return {};
}

}  // namespace flywheel::inline v0::detail
