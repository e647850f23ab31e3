// Files mapped read-only.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/config.hpp"
#include "flywheel/core/result.hpp"

namespace flywheel::inline v0 {

/// A file mapped read-only, or (in builds without mmap) read into memory. Shared by the tensors that view it.
class FLYWHEEL_API mapped_file {
 public:
  /// Errors: not_found, io (directories, pipes and other special files too), out_of_memory. An empty file is valid
  /// (size 0). The file must not be truncated by others while it is mapped: reading what is gone raises SIGBUS.
  [[nodiscard]] static result<std::shared_ptr<const mapped_file>> open(const std::filesystem::path& path);
  ~mapped_file();
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  /// Tells the system that this range (clipped to the file) is not needed again soon: it leaves this process's resident
  /// memory; the bytes stay readable. Never fails.
  void release(std::size_t offset, std::size_t length) const noexcept;
  /// Tells the system that this range (clipped to the file) will be read soon. Never fails.
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
