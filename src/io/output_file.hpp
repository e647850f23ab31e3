// A file that appears under its name only when it is complete.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "flywheel/core/result.hpp"

namespace flywheel::inline v0::io::detail {

/// Written under a temporary name in the same folder; commit() makes it durable and renames it over what had the name
/// before (when that is a link: over the file it leads to). Without commit(), and after any error, nothing is left
/// behind. Movable, not thread-safe. Functions may throw std::bad_alloc.
class output_file {
 public:
  /// Errors: not_found (no such folder), invalid_argument (the path is a folder, a device or a pipe), io.
  [[nodiscard]] static result<output_file> create(const std::filesystem::path& path);
  output_file(output_file&& other) noexcept;
  output_file& operator=(output_file&& other) noexcept;
  ~output_file();

  /// Appends. Error: io; the file is then gone.
  [[nodiscard]] result<void> write(std::span<const std::byte> bytes);
  /// Bytes written so far.
  [[nodiscard]] std::uint64_t position() const noexcept { return position_; }
  /// Flushes to the device, renames, and flushes the folder. Error: io; the file is then gone.
  [[nodiscard]] result<void> commit();
  [[nodiscard]] const std::string& where() const noexcept { return where_; }

 private:
  output_file() = default;
  result<void> flush();
  result<void> write_through(std::span<const std::byte> bytes);
  /// Closes and removes the temporary file. Never fails.
  void discard() noexcept;
  /// Discards, and describes what the system refused.
  error refused(const char* what, int code);

  std::filesystem::path path_;
  std::filesystem::path folder_;
  std::filesystem::path temporary_;
  std::string where_;
  std::vector<std::byte> pending_;
  std::uint64_t position_ = 0;
  int handle_ = -1;
};

}  // namespace flywheel::inline v0::io::detail
