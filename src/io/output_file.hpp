// A file that appears under its name only when it is complete.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/result.hpp"

namespace flywheel::inline v0::io::detail {

/// What the journal of a resumable file begins with.
inline constexpr std::string_view journal_mark = "flywheel 1";

/// Bytes that a file takes on its device: of one with holes less than its size. 0 when there is none.
[[nodiscard]] std::uint64_t occupied_bytes(const std::filesystem::path& path) noexcept;

/// Written under a temporary name in the same folder; commit() makes it durable and renames it over what had the name
/// before (when that is a link: over the file it leads to). Without commit(), and after any error, nothing is left
/// behind. Movable, not thread-safe. Functions may throw std::bad_alloc.
class output_file {
 public:
  /// Errors: not_found (no such folder), invalid_argument (the path is a folder, a device or a pipe), io.
  [[nodiscard]] static result<output_file> create(const std::filesystem::path& path);
  /// The same with a temporary name that is known, `path`.partial, so that a later run can go on with it: what it holds
  /// is kept, and the first write goes to its start. Beside it lies its journal(), whose first line begins with
  /// journal_mark; one that is new has nothing else. Without commit(), both stay if they were there before, or once
  /// keep() was called. No other process has them before this object is gone. Errors also: invalid_argument (a file of
  /// that name is no earlier run's, or a link), io (another process is writing it).
  [[nodiscard]] static result<output_file> resume(const std::filesystem::path& path);
  output_file(output_file&& other) noexcept;
  output_file& operator=(output_file&& other) noexcept;
  ~output_file();

  /// Appends. Error: io; the file is then gone.
  [[nodiscard]] result<void> write(std::span<const std::byte> bytes);
  /// The next write goes there. Error: io.
  [[nodiscard]] result<void> seek(std::uint64_t position);
  /// Of what was written before, in this run or an earlier one; may be called with less in the file than asked for:
  /// false then. Error: io.
  [[nodiscard]] result<bool> read(std::uint64_t position, std::span<std::byte> out);
  /// Cuts or extends (with zeros) what is there. Error: io.
  [[nodiscard]] result<void> resize(std::uint64_t bytes);
  /// Of a resumable file: from now on it stays.
  void keep() noexcept { resumable_ = true; }
  /// Closes and removes the temporary file and its journal, resumable or not.
  void abandon() noexcept;
  /// The temporary file's name.
  [[nodiscard]] const std::filesystem::path& temporary() const noexcept { return temporary_; }
  /// Of a resumable file; otherwise empty.
  [[nodiscard]] const std::filesystem::path& journal() const noexcept { return journal_; }
  /// Where the next write goes: in a file without seek(), the bytes written so far.
  [[nodiscard]] std::uint64_t position() const noexcept { return position_; }
  /// Flushes to the device, renames, removes the journal, and flushes the folder. Error: io; the file is then gone,
  /// unless it is resumable.
  [[nodiscard]] result<void> commit();
  [[nodiscard]] const std::string& where() const noexcept { return where_; }

 private:
  output_file() = default;
  static result<output_file> prepare(const std::filesystem::path& path);
  /// The journal is an earlier run's, or a new one can be begun.
  result<void> claim();
  void close() noexcept;
  result<void> flush();
  result<void> write_through(std::span<const std::byte> bytes);
  /// Closes the temporary file and removes it and its journal, unless it stays. Never fails.
  void discard() noexcept;
  /// Discards, and describes what the system refused.
  error refused(const char* what, int code);

  std::filesystem::path path_;
  std::filesystem::path folder_;
  std::filesystem::path temporary_;
  std::filesystem::path journal_;
  std::string where_;
  std::vector<std::byte> pending_;
  std::uint64_t position_ = 0;
  int handle_ = -1;
  bool resumable_ = false;
};

}  // namespace flywheel::inline v0::io::detail
