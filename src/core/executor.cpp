#include "flywheel/core/executor.hpp"

#include <algorithm>
#include <atomic>

#include "flywheel/detail/try.hpp"
#include "src/core/platform.hpp"

namespace flywheel::inline v0 {

executor::~executor() = default;

namespace {

class serial final : public executor {
 public:
  [[nodiscard]] unsigned concurrency() const noexcept override { return 1; }
  [[nodiscard]] bool gang() const noexcept override { return true; }
  void run(unsigned n, function_ref<void(unsigned)> body) override {
    for (unsigned i = 0; i < n; ++i) body(i);
  }
};

class host final : public executor {
 public:
  explicit host(const host_pool& pool) noexcept : pool_(pool) {}
  [[nodiscard]] unsigned concurrency() const noexcept override { return std::max(1U, pool_.concurrency(pool_.user)); }
  [[nodiscard]] bool gang() const noexcept override { return pool_.gang; }
  void run(unsigned n, function_ref<void(unsigned)> body) override {
    if (n == 0) return;
    if (n == 1) return body(0);
    pool_.run(
        pool_.user, n,
        [](void* arg, unsigned index) { (*static_cast<const function_ref<void(unsigned)>*>(arg))(index); }, &body);
  }

 private:
  const host_pool pool_;
};

}  // namespace

std::shared_ptr<executor> serial_executor() {
  static serial instance;                       // stateless
  return {std::shared_ptr<void>(), &instance};  // owns nothing, allocates nothing
}

result<std::shared_ptr<executor>> make_host_executor(const host_pool& pool) {
  return detail::guarded([&]() -> result<std::shared_ptr<executor>> {
    if (!pool.concurrency || !pool.run)
      return error{errc::invalid_argument, "host_pool needs both functions, concurrency and run", {}};
    return std::shared_ptr<executor>(std::make_shared<host>(pool));
  });
}

#if !FLYWHEEL_HAS_THREADS
result<std::shared_ptr<executor>> make_thread_team(unsigned) { return serial_executor(); }
unsigned usable_cores() noexcept { return 1; }

namespace detail {
void yield() noexcept {}
}  // namespace detail
#endif

void parallel_for(executor& pool, std::size_t items, std::size_t grain,
                  function_ref<void(std::size_t begin, std::size_t end)> body) {
  if (items == 0) return;
  grain = std::max<std::size_t>(grain, 1);
  const std::size_t grains = items / grain + (items % grain != 0);
  const unsigned workers = static_cast<unsigned>(std::min<std::size_t>(grains, pool.concurrency()));
  if (workers <= 1) return body(0, items);

  // Several pieces per worker: a worker that loses its core for a while, or gets the expensive items, does fewer.
  const std::size_t pieces_per_worker = 8;
  const std::size_t step = std::max<std::size_t>(grains / (workers * pieces_per_worker), 1);  // grains per piece
  std::atomic<std::size_t> next{0};
  pool.run(workers, [&](unsigned) {
    for (;;) {
      const std::size_t first = next.fetch_add(step, std::memory_order_relaxed);
      if (first >= grains) return;
      const std::size_t begin = first * grain;
      const std::size_t end = grains - first > step ? begin + step * grain : items;
      body(begin, end);
    }
  });
}

}  // namespace flywheel::inline v0
