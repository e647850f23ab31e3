// Compiled programs on disk, so that a model loads without compiling the second time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace flywheel::inline v0::device {

/// A folder of files NAME.blob: a manifest (magic, version, the whole key, sizes, checksum), then the blob. Files are
/// written under a temporary name and renamed, so that any number of processes may share the folder; what is damaged,
/// or of another key, is as if it were not there. A cache never fails: what cannot be read is compiled, what cannot be
/// written is compiled again next time. Thread-safe.
class blob_cache {
 public:
  /// An empty folder name: nothing is kept.
  blob_cache(std::filesystem::path folder, std::uint64_t max_bytes) : folder_(std::move(folder)), max_(max_bytes) {}

  /// Empty if there is none. A blob that is found counts as used now.
  [[nodiscard]] std::vector<std::byte> find(std::string_view key) const;
  /// Also removes the least recently used ones beyond the limit.
  void put(std::string_view key, std::span<const std::byte> blob) const;
  void remove(std::string_view key) const;

 private:
  [[nodiscard]] std::filesystem::path file_of(std::string_view key) const;
  void trim() const;
  std::filesystem::path folder_;
  std::uint64_t max_;
};

}  // namespace flywheel::inline v0::device
