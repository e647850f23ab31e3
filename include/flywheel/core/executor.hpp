// Where parallel work runs: the default thread team, a host's own pool, oneTBB, or the calling thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

#include "flywheel/core/config.hpp"
#include "flywheel/core/result.hpp"

namespace flywheel::inline v0 {

/// A non-owning reference to a callable; valid while the callable is.
template <class Signature>
class function_ref;

template <class R, class... Args>
class function_ref<R(Args...)> {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, function_ref>) function_ref(F&& f)
  noexcept
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}
  R operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

/// Runs bodies in parallel. Implementations are thread-safe: concurrent run() calls wait for each other or share.
class FLYWHEEL_API executor {
 public:
  virtual ~executor();
  /// How many bodies can run at the same time, at least 1.
  [[nodiscard]] virtual unsigned concurrency() const noexcept = 0;
  /// True when run(n) with n <= concurrency() runs all n bodies at the same time, so that they may wait for each other
  /// at a barrier. False for pools that may run them one after the other.
  [[nodiscard]] virtual bool gang() const noexcept = 0;
  /// Calls body(0) .. body(n-1), each once, and returns when all have returned. `body` must not throw and must not
  /// call run() of the same executor. n may exceed concurrency(). What the caller wrote before is visible to the
  /// bodies, and what they wrote is visible to it afterwards.
  virtual void run(unsigned n, function_ref<void(unsigned worker)> body) = 0;
};

/// Everything on the calling thread. Shared, stateless.
[[nodiscard]] FLYWHEEL_API std::shared_ptr<executor> serial_executor();

/// The most threads that a team can have.
inline constexpr unsigned max_threads = 4096;

/// Physical cores this process may use: those of its affinity mask, or fewer when its container has a CPU quota. 1 in
/// a build without threads.
[[nodiscard]] FLYWHEEL_API unsigned usable_cores() noexcept;

/// A persistent team of `threads` (0: usable_cores()), the calling thread included. Waiting workers spin briefly, then
/// yield, then sleep: an idle team uses no CPU. Bodies run with the caller's rounding and denormal mode. With n above
/// concurrency() each worker takes the next index when it is done with one. A child of fork() must not use it.
/// Errors: invalid_argument (more than max_threads), out_of_memory, io (threads cannot be started).
/// A team of one, and any team in a build without threads, is serial_executor().
[[nodiscard]] FLYWHEEL_API result<std::shared_ptr<executor>> make_thread_team(unsigned threads = 0);

/// A host's own pool, as two plain functions.
struct host_pool {
  void* user = nullptr;  ///< Passed to both functions.
  /// How many tasks can run at the same time.
  unsigned (*concurrency)(void* user) = nullptr;
  /// Must call task(arg, i) for i = 0 .. n-1, each once, from any threads, and return when all have returned.
  void (*run)(void* user, unsigned n, void (*task)(void* arg, unsigned index), void* arg) = nullptr;
  /// True if run() truly runs up to concurrency() tasks at the same time; lets decoding use one dispatch per token.
  bool gang = false;
};

/// Wraps a host's pool. Error: invalid_argument when a function is missing.
[[nodiscard]] FLYWHEEL_API result<std::shared_ptr<executor>> make_host_executor(const host_pool& pool);

/// A oneTBB arena of `threads` slots (0: oneTBB's default), at most as many as oneTBB's own limit allows.
/// Errors: unsupported in builds without oneTBB, invalid_argument (more than max_threads), out_of_memory.
[[nodiscard]] FLYWHEEL_API result<std::shared_ptr<executor>> make_tbb_executor(unsigned threads = 0);

/// Splits [0, items) into contiguous ranges and calls body(begin, end) once for each. Every range begins at a multiple
/// of `grain` (at least 1) and holds a multiple of `grain` items, but for the last. Ranges are handed out as workers
/// get free, several per worker; the split does not influence results of bodies that treat items independently.
FLYWHEEL_API void parallel_for(executor& pool, std::size_t items, std::size_t grain,
                               function_ref<void(std::size_t begin, std::size_t end)> body);

}  // namespace flywheel::inline v0
