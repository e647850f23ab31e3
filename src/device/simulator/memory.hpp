// Buffers of a simulated NPU: an address space of its own, or the host's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/result.hpp"
#include "src/device/simulator/profile.hpp"

namespace flywheel::inline v0::device::simulation {

/// What memory is filled with that its reader has no right to.
inline constexpr std::byte poison{0xDB};

/// Memory at a multiple of any alignment.
class aligned_memory {
 public:
  [[nodiscard]] static result<aligned_memory> allocate(std::size_t bytes, std::size_t alignment);
  [[nodiscard]] std::byte* data() const noexcept { return data_; }

 private:
  buffer raw_;
  std::byte* data_ = nullptr;
};

/// Where the host sees a buffer of another address space. While it is closed it is poisoned: a read gives nonsense, a
/// write is found when it opens the next time, and the address sanitizer reports both at once.
class staging_area {
 public:
  staging_area() = default;
  staging_area(const staging_area&) = delete;
  staging_area& operator=(const staging_area&) = delete;
  ~staging_area();

  /// Errors: out_of_memory; invalid_argument: the host wrote to it while it was closed.
  [[nodiscard]] result<std::byte*> open(std::size_t bytes, std::size_t alignment);
  [[nodiscard]] std::byte* data() const noexcept { return memory_ ? memory_->data() : nullptr; }
  void close() noexcept;

 private:
  std::optional<aligned_memory> memory_;
  std::size_t bytes_ = 0;
};

/// One buffer. The lock of its device guards everything but the copies between map() and unmap(), for which it is
/// pinned by a use.
struct memory_block {
  std::uintptr_t handle = 0;
  std::byte* data = nullptr;  ///< As the device sees it.
  std::uint64_t bytes = 0;
  std::optional<aligned_memory> owned;  ///< None: imported.
  staging_area staging;
  bool mapped = false;
  bool written = false;    ///< The mapping is for writing: its end copies.
  bool moving = false;     ///< A copy is under way.
  bool released = false;   ///< Gone as soon as nothing uses it.
  std::uint32_t uses = 0;  ///< By submissions that have not ended, and by copies.
};

}  // namespace flywheel::inline v0::device::simulation
