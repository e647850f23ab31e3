#include "flywheel/core/executor.hpp"
#include "flywheel/detail/try.hpp"

#if defined(FLYWHEEL_WITH_TBB) && !defined(FLYWHEEL_SERIAL)

#  include <oneapi/tbb/blocked_range.h>
#  include <oneapi/tbb/global_control.h>
#  include <oneapi/tbb/parallel_for.h>
#  include <oneapi/tbb/partitioner.h>
#  include <oneapi/tbb/task_arena.h>

#  include <algorithm>
#  include <atomic>

namespace flywheel::inline v0 {

namespace {

class tbb_executor final : public executor {
 public:
  explicit tbb_executor(int slots) : arena_(slots) { arena_.initialize(); }
  [[nodiscard]] unsigned concurrency() const noexcept override {
    return static_cast<unsigned>(std::max(1, arena_.max_concurrency()));
  }
  // oneTBB promises no simultaneity: its workers may be busy in another arena.
  [[nodiscard]] bool gang() const noexcept override { return false; }
  void run(unsigned n, function_ref<void(unsigned)> body) override {
    if (n == 0) return;
    if (n == 1) return body(0);
    // Tasks take the next index instead of their own: when oneTBB has no memory for more tasks, what is left is done
    // here.
    std::atomic<unsigned> next{0};
    try {
      arena_.execute([&] {
        tbb::parallel_for(
            tbb::blocked_range<unsigned>(0, n, 1),
            [&](const tbb::blocked_range<unsigned>& range) {
              for (unsigned i = range.begin(); i != range.end(); ++i)
                if (const unsigned index = next.fetch_add(1, std::memory_order_relaxed); index < n) body(index);
            },
            tbb::simple_partitioner{});
      });
    } catch (const std::bad_alloc&) {  // parallel_for has waited for the tasks that had started
    }
    for (unsigned index; (index = next.fetch_add(1, std::memory_order_relaxed)) < n;) body(index);
  }

 private:
  tbb::task_arena arena_;
};

}  // namespace

result<std::shared_ptr<executor>> make_tbb_executor(unsigned threads) {
  return detail::guarded([&]() -> result<std::shared_ptr<executor>> {
    if (threads > max_threads) return error{errc::invalid_argument, "too many threads", "threads"};
    // oneTBB prints a warning when it is asked for more than it may have.
    const std::size_t allowed = tbb::global_control::active_value(tbb::global_control::max_allowed_parallelism);
    const int slots = threads == 0
                          ? tbb::task_arena::automatic
                          : static_cast<int>(std::min<std::size_t>(threads, std::max<std::size_t>(allowed, 1)));
    return std::shared_ptr<executor>(std::make_shared<tbb_executor>(slots));
  });
}

}  // namespace flywheel::inline v0

#else

namespace flywheel::inline v0 {

result<std::shared_ptr<executor>> make_tbb_executor(unsigned) {
  return detail::guarded([]() -> result<std::shared_ptr<executor>> {
    return error{
        errc::unsupported, "this build has no oneTBB; build with FLYWHEEL_WITH_TBB=ON, or use make_thread_team", {}};
  });
}

}  // namespace flywheel::inline v0

#endif
