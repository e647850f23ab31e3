#include "src/device/simulator/memory.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "flywheel/detail/try.hpp"

#if defined(__SANITIZE_ADDRESS__)
#  define FLYWHEEL_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#  if __has_feature(address_sanitizer)
#    define FLYWHEEL_ADDRESS_SANITIZER 1
#  endif
#endif
#if FLYWHEEL_ADDRESS_SANITIZER
#  include <sanitizer/asan_interface.h>
#else
#  define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#  define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace flywheel::inline v0::device::simulation {
namespace {

/// Areas beyond this are given back when they close: those of weights, which are mapped once.
constexpr std::size_t kept_staging_bytes = std::size_t{16} << 20;

}  // namespace

result<aligned_memory> aligned_memory::allocate(std::size_t bytes, std::size_t alignment) {
  if (bytes > SIZE_MAX - alignment) return error{errc::out_of_memory, "out of memory", {}};
  aligned_memory out;
  FLYWHEEL_TRY(out.raw_, buffer::allocate(bytes + alignment));
  const std::size_t beyond = reinterpret_cast<std::uintptr_t>(out.raw_.data()) % alignment;
  out.data_ = out.raw_.mutable_data() + (beyond == 0 ? 0 : alignment - beyond);
  return out;
}

staging_area::~staging_area() {
  if (memory_) ASAN_UNPOISON_MEMORY_REGION(memory_->data(), bytes_);
}

result<std::byte*> staging_area::open(std::size_t bytes, std::size_t alignment) {
  if (!memory_) {
    FLYWHEEL_TRY(memory_, aligned_memory::allocate(bytes, alignment));
    bytes_ = bytes;
    std::memset(data(), std::to_integer<int>(poison), bytes_);
    return data();
  }
  ASAN_UNPOISON_MEMORY_REGION(data(), bytes_);
  // All are poison if the first is and each equals the next: memcmp is quick.
  if (*data() == poison && std::memcmp(data(), data() + 1, bytes_ - 1) == 0) return data();
  const auto offset = std::find_if(data(), data() + bytes_, [](std::byte b) { return b != poison; }) - data();
  close();
  return error{errc::invalid_argument,
               "the host wrote to byte " + std::to_string(offset) + " of this buffer while it was not mapped",
               {}};
}

void staging_area::close() noexcept {
  if (bytes_ > kept_staging_bytes) {
    memory_.reset();
    return;
  }
  std::memset(data(), std::to_integer<int>(poison), bytes_);
  ASAN_POISON_MEMORY_REGION(data(), bytes_);
}

}  // namespace flywheel::inline v0::device::simulation
