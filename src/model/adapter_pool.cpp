#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/model/adapter.hpp"
#include "flywheel/model/model.hpp"

namespace flywheel::inline v0 {

struct adapter_pool::state {
  struct entry {
    std::filesystem::path path;
    flywheel::adapter adapter;   ///< Empty: not resident.
    std::uint64_t last_use = 0;  ///< Of a clock that ticks with every get().
    bool loading = false;        ///< By some thread; the others wait.
  };

  model base;
  std::size_t max_bytes = 0;
  mutable std::mutex mutex;  ///< Of everything below.
  std::condition_variable loaded;
  /// Shared, so that a name that is removed while it is being loaded goes quietly.
  std::map<std::string, std::shared_ptr<entry>, std::less<>> entries;
  std::uint64_t clock = 0;
  std::size_t bytes = 0, resident = 0;

  void let_go(entry& e) {
    bytes -= e.adapter.info().bytes;
    --resident;
    e.adapter = {};
  }
  /// Lets go of what was not used for longest, but for `kept`.
  void shrink(const entry& kept) {
    while (bytes > max_bytes) {
      entry* oldest = nullptr;
      for (const auto& [name, e] : entries)
        if (e->adapter && e.get() != &kept && (oldest == nullptr || e->last_use < oldest->last_use)) oldest = e.get();
      if (oldest == nullptr) return;
      let_go(*oldest);
    }
  }
};

result<adapter_pool> adapter_pool::create(const model& base, const adapter_pool_options& options) {
  return detail::guarded([&]() -> result<adapter_pool> {
    if (!base) return error{errc::invalid_argument, "the model handle is empty; open a model first", "model"};
    auto made = std::make_shared<state>();
    made->base = base;
    made->max_bytes = options.max_bytes;
    return adapter_pool(std::move(made));
  });
}

result<void> adapter_pool::add(std::string name, std::filesystem::path path) {
  return detail::guarded([&]() -> result<void> {
    if (name.empty()) return error{errc::invalid_argument, "the name is empty", "name"};
    auto made = std::make_shared<state::entry>();
    made->path = std::move(path);
    const std::scoped_lock lock(state_->mutex);
    if (state_->entries.contains(name))
      return error{errc::invalid_argument, "the pool has an adapter of this name already", name};
    state_->entries.emplace(std::move(name), std::move(made));
    return {};
  });
}

result<void> adapter_pool::remove(std::string_view name) {
  return detail::guarded([&]() -> result<void> {
    const std::scoped_lock lock(state_->mutex);
    const auto at = state_->entries.find(name);
    if (at == state_->entries.end())
      return error{errc::not_found, "the pool has no adapter of this name", std::string(name)};
    if (at->second->adapter) state_->let_go(*at->second);
    state_->entries.erase(at);
    return {};
  });
}

result<adapter> adapter_pool::get(std::string_view name, const control& control) const {
  return detail::guarded([&]() -> result<adapter> {
    state& s = *state_;
    std::unique_lock lock(s.mutex);
    std::shared_ptr<state::entry> wanted;
    while (true) {
      const auto at = s.entries.find(name);
      if (at == s.entries.end())
        return error{errc::not_found, "the pool has no adapter of this name", std::string(name)};
      wanted = at->second;
      wanted->last_use = ++s.clock;
      if (wanted->adapter) return wanted->adapter;
      if (!wanted->loading) break;
      if (control.stopped()) return error{errc::cancelled, "cancelled", std::string(name)};
      s.loaded.wait_for(lock, std::chrono::milliseconds(50));
    }
    const std::filesystem::path path = wanted->path;
    wanted->loading = true;
    lock.unlock();
    auto made = adapter::open(s.base, path, control);
    lock.lock();
    wanted->loading = false;
    s.loaded.notify_all();
    if (!made) return made;
    if (made->info().bytes > s.max_bytes)
      return error{errc::out_of_memory,
                   "the adapter alone takes " + std::to_string(made->info().bytes) + " bytes of the pool's " +
                       std::to_string(s.max_bytes) + "; enlarge adapter_pool_options::max_bytes",
                   std::string(name)};
    const auto at = s.entries.find(name);
    if (at == s.entries.end() || at->second != wanted) return made;  // removed in the meantime
    wanted->adapter = *made;
    s.bytes += made->info().bytes;
    ++s.resident;
    s.shrink(*wanted);
    return made;
  });
}

std::size_t adapter_pool::size() const noexcept {
  const std::scoped_lock lock(state_->mutex);
  return state_->entries.size();
}
std::size_t adapter_pool::resident() const noexcept {
  const std::scoped_lock lock(state_->mutex);
  return state_->resident;
}
std::size_t adapter_pool::resident_bytes() const noexcept {
  const std::scoped_lock lock(state_->mutex);
  return state_->bytes;
}

}  // namespace flywheel::inline v0
