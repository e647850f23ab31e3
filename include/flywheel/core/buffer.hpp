// Bytes: aligned owning memory, and files mapped read-only.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
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

/// A file mapped read-only, or (in builds without mmap) read into memory. Shared by the tensors that view it.
class FLYWHEEL_API mapped_file {
 public:
  /// Errors: not_found, io. An empty file is valid (size 0).
  [[nodiscard]] static result<std::shared_ptr<const mapped_file>> open(const std::filesystem::path& path);
  ~mapped_file();
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  /// Tells the system that this range is not needed again soon; the bytes stay readable. Never fails.
  void release(std::size_t offset, std::size_t length) const noexcept;
  /// Tells the system that this range will be read soon.
  void prefetch(std::size_t offset, std::size_t length) const noexcept;

 private:
  mapped_file() = default;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  bool mapped_ = false;
  buffer copy_;
  std::filesystem::path path_;
};

}  // namespace flywheel::inline v0
