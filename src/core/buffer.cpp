#include "flywheel/core/buffer.hpp"

#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/core/platform.hpp"

#if FLYWHEEL_HAS_MMAP
#  include <sys/mman.h>
#  include <unistd.h>
#endif

namespace flywheel::inline v0 {

namespace {

constexpr std::size_t huge_page = std::size_t{2} << 20;

// Larger than any address space: refused here, so that no allocator has to be asked.
constexpr std::size_t unthinkable = sizeof(std::size_t) >= 8 ? static_cast<std::size_t>(std::uint64_t{1} << 56)
                                                             : std::numeric_limits<std::size_t>::max() / 2;

class pages final : public std::pmr::memory_resource {
  void* do_allocate(std::size_t bytes, std::size_t align) override {
    if (bytes >= unthinkable) throw std::bad_alloc();
#if FLYWHEEL_HAS_MMAP
    if (mapped(bytes, align)) {
      // Reserve enough to cut a 2 MiB aligned piece out of it, and give the rest back.
      const std::size_t size = rounded(bytes);
      const std::size_t reserved = size + huge_page;
      void* const start = ::mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (start == MAP_FAILED) throw std::bad_alloc();
      auto* const first = static_cast<std::byte*>(start);
      const std::size_t head = (huge_page - reinterpret_cast<std::uintptr_t>(first) % huge_page) % huge_page;
      if (head > 0) ::munmap(first, head);
      if (head < huge_page) ::munmap(first + head + size, huge_page - head);
#  if defined(MADV_HUGEPAGE)
      ::madvise(first + head, size, MADV_HUGEPAGE);  // advice: it does not matter when the system has none
#  endif
      return first + head;
    }
#endif
    return ::operator new(bytes, std::align_val_t(align));
  }
  void do_deallocate(void* address, [[maybe_unused]] std::size_t bytes, std::size_t align) override {
#if FLYWHEEL_HAS_MMAP
    if (mapped(bytes, align)) {
      ::munmap(address, rounded(bytes));
      return;
    }
#endif
    ::operator delete(address, std::align_val_t(align));
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

 public:
#if FLYWHEEL_HAS_MMAP
  /// Whether a block of this size is pages of its own; the same answer when it is given back.
  static bool mapped(std::size_t bytes, std::size_t align) noexcept { return bytes >= huge_page && align <= huge_page; }
  static std::size_t rounded(std::size_t bytes) noexcept {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
  }
#else
  static bool mapped(std::size_t, std::size_t) noexcept { return false; }
#endif
};

}  // namespace

std::pmr::memory_resource* page_resource() noexcept {
  static pages resource;  // stateless
  return &resource;
}

buffer::buffer(buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      memory_(std::exchange(other.memory_, nullptr)) {}

buffer& buffer::operator=(buffer&& other) noexcept {
  buffer taken(std::move(other));
  std::swap(data_, taken.data_);
  std::swap(size_, taken.size_);
  std::swap(memory_, taken.memory_);
  return *this;
}

buffer::~buffer() {
  if (data_) memory_->deallocate(data_, size_, alignment);
}

result<buffer> buffer::allocate(std::size_t size, std::pmr::memory_resource* memory) {
  return detail::guarded([&]() -> result<buffer> {
    if (size >= unthinkable) return error{errc::out_of_memory, "out of memory", {}};
    buffer b;
    if (size == 0) return b;
    b.memory_ = memory ? memory : page_resource();
    b.data_ = static_cast<std::byte*>(b.memory_->allocate(size, alignment));
    b.size_ = size;
    return b;
  });
}

result<buffer> buffer::zeros(std::size_t size, std::pmr::memory_resource* memory) {
  FLYWHEEL_TRY(buffer b, allocate(size, memory));
  // Fresh pages are zero, and stay untouched (not resident) until somebody writes to them.
  const bool fresh = (!memory || memory == page_resource()) && pages::mapped(size, alignment);
  if (size > 0 && !fresh) std::memset(b.data_, 0, size);
  return b;
}

}  // namespace flywheel::inline v0
