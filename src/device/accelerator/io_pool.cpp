#include "src/device/accelerator/io_pool.hpp"

#include <bit>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::device {
namespace {

constexpr std::uint64_t kept_bytes = std::uint64_t{256} << 20;  ///< Of buffers that nobody uses.

/// Four sizes between one power of two and the next.
std::uint64_t size_class(std::uint64_t bytes) {
  constexpr std::uint64_t least = 4096;
  if (bytes <= least) return least;
  const std::uint64_t step = std::bit_floor(bytes) / 4;
  return (bytes + step - 1) / step * step;
}

}  // namespace

result<vendor_buffer> io_pool::take(std::uint64_t bytes) {
  const std::uint64_t size = size_class(bytes);
  {
    const std::scoped_lock lock(mutex_);
    collect_locked();
    if (auto& shelf = free_[size]; !shelf.empty()) {
      vendor_buffer out = std::move(shelf.back());
      shelf.pop_back();
      free_bytes_ -= size;
      return out;
    }
  }
  // Rounding up is for sharing; where the device has a limit, what is needed will do.
  const std::uint64_t limit = owner_->caps().max_buffer_bytes;
  return vendor_buffer::make(owner_, limit != 0 && size > limit ? bytes : size);
}

void io_pool::give_back(vendor_buffer used) {
  if (!used.get()) return;
  const std::scoped_lock lock(mutex_);
  if (owner_->lost()) {  // nobody takes any more
    free_.clear();
    free_bytes_ = 0;
    return;
  }
  if (used.bytes() != size_class(used.bytes()) || free_bytes_ + used.bytes() > kept_bytes) return;
  auto& shelf = free_[used.bytes()];
  shelf.push_back(std::move(used));
  free_bytes_ += shelf.back().bytes();
}

void io_pool::abandon(flywheel_fence fence, io_buffers memory, std::shared_ptr<const void> program,
                      std::shared_ptr<const void> weights) {
  const std::scoped_lock lock(mutex_);
  orphans_.push_back(
      {fence, std::chrono::steady_clock::now(), std::move(program), std::move(weights), std::move(memory)});
}

void io_pool::collect() {
  const std::scoped_lock lock(mutex_);
  collect_locked();
}

/// Memory of orphans is not used again: it is released.
void io_pool::collect_locked() {
  const auto now = std::chrono::steady_clock::now();
  std::erase_if(orphans_, [&](const orphan& o) {
    if (owner_->table().wait(owner_->self(), o.fence, 0) == FLYWHEEL_TIMEOUT) {
      if (now - o.since > owner_->patience()) (void)owner_->lose("a submission never ended");
      return false;
    }
    owner_->give_place();
    return true;
  });
}

}  // namespace flywheel::inline v0::device
