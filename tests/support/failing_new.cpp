// The replaced operator new. Part of the test support library; a program gets it by using failing_new.hpp.
#include "support/failing_new.hpp"

#include <malloc.h>

#include <atomic>
#include <cstdlib>

namespace flywheel::test {
namespace {
constexpr std::uint64_t never = UINT64_MAX;
thread_local std::uint64_t remaining = never;
thread_local std::uint64_t count = 0;
thread_local bool only_once = false;
thread_local bool has_failed = false;
std::atomic<std::int64_t> live{0}, most{0};

void* counted(void* p) {
  if (p == nullptr) return p;
  const std::int64_t now = live += static_cast<std::int64_t>(malloc_usable_size(p));
  for (std::int64_t old = most; old < now && !most.compare_exchange_weak(old, now);) {
  }
  return p;
}
void release(void* p) noexcept {
  if (p != nullptr) live -= static_cast<std::int64_t>(malloc_usable_size(p));
  std::free(p);
}

void* allocate(std::size_t size, std::size_t alignment) {
  if (remaining == 0) {
    has_failed = true;
    if (only_once) remaining = never;
    return nullptr;
  }
  if (remaining != never) --remaining;
  ++count;
  if (size == 0) size = 1;
  if (alignment <= __STDCPP_DEFAULT_NEW_ALIGNMENT__) return counted(std::malloc(size));
  return counted(std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment));
}

void* allocate_or_throw(std::size_t size, std::size_t alignment) {
  void* p = allocate(size, alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
}  // namespace

fail_allocations::fail_allocations(std::uint64_t countdown, bool once) noexcept {
  remaining = countdown;
  only_once = once;
  has_failed = false;
}
fail_allocations::~fail_allocations() { remaining = never; }
bool fail_allocations::failed() const noexcept { return has_failed; }
std::uint64_t allocation_count() noexcept { return count; }

peak_of_allocations::peak_of_allocations() noexcept : before_(live) { most = before_; }
std::uint64_t peak_of_allocations::bytes() const noexcept { return static_cast<std::uint64_t>(most - before_); }

}  // namespace flywheel::test

using flywheel::test::allocate;
using flywheel::test::allocate_or_throw;
using flywheel::test::release;

void* operator new(std::size_t n) { return allocate_or_throw(n, 0); }
void* operator new[](std::size_t n) { return allocate_or_throw(n, 0); }
void* operator new(std::size_t n, std::align_val_t a) { return allocate_or_throw(n, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t n, std::align_val_t a) { return allocate_or_throw(n, static_cast<std::size_t>(a)); }
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return allocate(n, 0); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept { return allocate(n, 0); }
void* operator new(std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return allocate(n, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return allocate(n, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { release(p); }
void operator delete[](void* p) noexcept { release(p); }
void operator delete(void* p, std::size_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t) noexcept { release(p); }
void operator delete(void* p, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { release(p); }
