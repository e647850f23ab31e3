// The default executor: a persistent team of threads, made for a dispatch per token and barriers within it.
#include "src/core/platform.hpp"

#if FLYWHEEL_HAS_THREADS

#  include <algorithm>
#  include <atomic>
#  include <chrono>
#  include <cstdint>
#  include <mutex>
#  include <string>
#  include <thread>
#  include <vector>

#  include "flywheel/core/executor.hpp"
#  include "flywheel/detail/spin.hpp"
#  include "flywheel/detail/try.hpp"
#  include "src/core/float_control.hpp"
#  include "src/core/topology.hpp"

#  if defined(__unix__) || defined(__APPLE__)
#    include <pthread.h>
#    include <signal.h>
#  endif

namespace flywheel::inline v0 {

namespace detail {
void yield() noexcept { std::this_thread::yield(); }
}  // namespace detail

namespace {

/// While one lives, threads started here are born with all signals blocked except those that a fault or a profiler
/// raises: the host's handlers run on the host's threads.
class signals_blocked {
 public:
#  if defined(__unix__) || defined(__APPLE__)
  signals_blocked() noexcept {
    sigset_t set;
    sigfillset(&set);
    for (const int kept : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGPROF}) sigdelset(&set, kept);
    blocked_ = pthread_sigmask(SIG_BLOCK, &set, &before_) == 0;
  }
  ~signals_blocked() {
    if (blocked_) pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  sigset_t before_;
  bool blocked_;
#  else
  signals_blocked() noexcept {}
  ~signals_blocked() {}
#  endif
};

constexpr auto spin_time = std::chrono::microseconds(30);     // longer than from one dispatch of a token to the next
constexpr auto yield_time = std::chrono::microseconds(1000);  // longer than from one token to the next, mostly

/// How many pauses take spin_time on this CPU (a pause takes 10 to 140 cycles).
unsigned calibrate_spins() noexcept {
  using clock = std::chrono::steady_clock;
  constexpr int pauses = 200;
  auto best = clock::duration::max();
  for (int round = 0; round < 3; ++round) {  // the shortest: the others were interrupted
    const auto start = clock::now();
    for (int i = 0; i < pauses; ++i) detail::pause();
    best = std::min(best, clock::now() - start);
  }
  const auto each = std::max<std::int64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(best).count(), pauses);
  return static_cast<unsigned>(std::chrono::nanoseconds(spin_time).count() * pauses / each);
}

class thread_team final : public executor {
 public:
  explicit thread_team(unsigned threads)
      : threads_(threads), spins_(threads <= usable_processors() ? calibrate_spins() : 0) {
    workers_.reserve(threads - 1);
    const signals_blocked guard;
    try {
      for (unsigned i = 1; i < threads; ++i) workers_.emplace_back(&thread_team::work, this, i);
    } catch (...) {
      stop();
      throw;
    }
  }
  ~thread_team() override { stop(); }

  [[nodiscard]] unsigned concurrency() const noexcept override { return threads_; }
  [[nodiscard]] bool gang() const noexcept override { return true; }

  void run(unsigned n, function_ref<void(unsigned)> body) override {
    const unsigned participants = std::min(n, threads_);
    if (participants <= 1 || inside()) {  // nested calls are forbidden, but better run inline than wait for themselves
      for (unsigned i = 0; i < n; ++i) body(i);
      return;
    }
    const std::lock_guard lock(busy_);
    caller_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    tasks_ = n;
    body_ = &body;
    float_control_ = get_float_control();
    next_.store(participants, std::memory_order_relaxed);
    pending_.store(participants - 1, std::memory_order_relaxed);
    dispatch(participants);
    execute(0);
    wait_for_workers();
    caller_.store(std::thread::id(), std::memory_order_relaxed);
  }

 private:
  // A dispatch is one word, so that a worker knows from a single load whether the job concerns it: the job's number
  // above, the number of participants in the low 16 bits. Workers beyond that number must not look at the job, for
  // the next one may be written already.
  static constexpr unsigned participant_bits = 16;
  static constexpr std::uint64_t participant_mask = (1U << participant_bits) - 1;
  static constexpr std::uint64_t stop_mark = participant_mask;
  static_assert(max_threads < stop_mark);

  void dispatch(std::uint64_t low) noexcept {
    const std::uint64_t number = (dispatched_.load(std::memory_order_relaxed) >> participant_bits) + 1;
    dispatched_.store(number << participant_bits | low, std::memory_order_seq_cst);
    // A worker says that it sleeps before it looks a last time, we look for sleepers after the store: one of the two
    // sees the other.
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      alarm_.fetch_add(1, std::memory_order_seq_cst);
      alarm_.notify_all();
    }
  }

  void work(unsigned index) noexcept {
    for (std::uint64_t seen = 0;;) {
      seen = next_dispatch(seen);
      const std::uint64_t participants = seen & participant_mask;
      if (participants == stop_mark) return;
      if (index >= participants) continue;
      if (get_float_control() != float_control_) set_float_control(float_control_);
      execute(index);
      if (pending_.fetch_sub(1, std::memory_order_seq_cst) == 1 && caller_sleeps_.load(std::memory_order_seq_cst))
        pending_.notify_one();
    }
  }

  /// Body `index`, and when there are more tasks than participants, the next one as long as there are.
  void execute(unsigned index) noexcept {
    const function_ref<void(unsigned)>& body = *body_;
    body(index);
    if (tasks_ <= threads_) return;
    while ((index = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_) body(index);
  }

  /// Spins, then yields, until `ready`; false when that took too long and it is time to sleep.
  template <class Ready>
  bool wait_awake(Ready ready) const noexcept {
    for (unsigned i = 0; i < spins_; ++i) {
      if (ready()) return true;
      detail::pause();
    }
    const auto start = std::chrono::steady_clock::now();
    do {
      if (ready()) return true;
      std::this_thread::yield();
    } while (std::chrono::steady_clock::now() - start < yield_time);
    return ready();
  }

  std::uint64_t next_dispatch(std::uint64_t seen) noexcept {
    const auto ready = [&] { return dispatched_.load(std::memory_order_acquire) != seen; };
    while (!wait_awake(ready)) {
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      const std::uint32_t heard = alarm_.load(std::memory_order_seq_cst);
      if (dispatched_.load(std::memory_order_seq_cst) == seen) alarm_.wait(heard, std::memory_order_seq_cst);
      sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }
    return dispatched_.load(std::memory_order_acquire);
  }

  void wait_for_workers() noexcept {
    if (wait_awake([&] { return pending_.load(std::memory_order_acquire) == 0; })) return;
    caller_sleeps_.store(true, std::memory_order_seq_cst);
    while (const std::uint32_t left = pending_.load(std::memory_order_seq_cst))
      pending_.wait(left, std::memory_order_seq_cst);
    caller_sleeps_.store(false, std::memory_order_relaxed);
  }

  /// Whether the calling thread is executing a body of this team.
  bool inside() const noexcept {
    const std::thread::id self = std::this_thread::get_id();
    if (caller_.load(std::memory_order_relaxed) == self) return true;  // only we could have written our own id
    return std::any_of(workers_.begin(), workers_.end(), [&](const std::thread& t) { return t.get_id() == self; });
  }

  void stop() noexcept {
    dispatch(stop_mark);
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
  }

  const unsigned threads_;  // with the caller
  const unsigned spins_;
  std::vector<std::thread> workers_;
  std::mutex busy_;  // one job at a time
  std::atomic<std::thread::id> caller_{};

  // The job: written before the dispatch, read by participants after it.
  const function_ref<void(unsigned)>* body_ = nullptr;
  unsigned tasks_ = 0;
  float_control float_control_ = 0;

  // Each on its own cache line: polled by all, or written by all.
  alignas(64) std::atomic<std::uint64_t> dispatched_{0};
  alignas(64) std::atomic<std::uint32_t> sleepers_{0};
  std::atomic<std::uint32_t> alarm_{0};
  alignas(64) std::atomic<std::uint32_t> pending_{0};
  std::atomic<bool> caller_sleeps_{false};
  alignas(64) std::atomic<unsigned> next_{0};
};

}  // namespace

unsigned usable_cores() noexcept { return usable_physical_cores(); }

result<std::shared_ptr<executor>> make_thread_team(unsigned threads) {
  return detail::guarded([&]() -> result<std::shared_ptr<executor>> {
    if (threads > max_threads)
      return error{errc::invalid_argument, "at most " + std::to_string(max_threads) + " threads", "threads"};
    if (threads == 0) threads = std::min(usable_cores(), max_threads);
    if (threads == 1) return serial_executor();
    try {
      return std::shared_ptr<executor>(std::make_shared<thread_team>(threads));
    } catch (const std::system_error& e) {
      return error{errc::io, "cannot start " + std::to_string(threads) + " threads: " + e.what(), {}};
    }
  });
}

}  // namespace flywheel::inline v0

#endif
