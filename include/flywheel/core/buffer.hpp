// Bytes: aligned owning memory.
#pragma once

#include <cstddef>
#include <memory_resource>
#include <span>

#include "flywheel/core/config.hpp"
#include "flywheel/core/result.hpp"

namespace flywheel::inline v0 {

/// Owning, 64-byte aligned memory. Large buffers are whole pages advised as huge pages where the system has them.
/// Movable; thread-safe to read.
class FLYWHEEL_API buffer {
 public:
  static constexpr std::size_t alignment = 64;

  buffer() noexcept = default;
  buffer(buffer&& other) noexcept;
  buffer& operator=(buffer&& other) noexcept;
  ~buffer();

  /// `size` bytes, not initialised (zeroed where the system gives zero pages anyway). `memory` null: the default
  /// resource. The resource must outlive the buffer. Error: out_of_memory.
  [[nodiscard]] static result<buffer> allocate(std::size_t size, std::pmr::memory_resource* memory = nullptr);
  /// The same, filled with zeros.
  [[nodiscard]] static result<buffer> zeros(std::size_t size, std::pmr::memory_resource* memory = nullptr);

  [[nodiscard]] const std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::byte* mutable_data() noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }
  [[nodiscard]] std::span<std::byte> mutable_bytes() noexcept { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::pmr::memory_resource* memory_ = nullptr;
};

/// The default memory of buffers: aligned allocation; from 2 MiB on, whole pages advised as huge pages. Stateless,
/// thread-safe, throws std::bad_alloc like any memory resource.
[[nodiscard]] FLYWHEEL_API std::pmr::memory_resource* page_resource() noexcept;

}  // namespace flywheel::inline v0
