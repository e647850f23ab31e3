// Compiled programs in memory and on disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "src/device/accelerator/blob_cache.hpp"
#include "src/device/accelerator/vendor_device.hpp"

namespace flywheel::inline v0::device {

/// Programs of one device by what they compute, so that equal layers share them. Thread-safe.
class program_store {
 public:
  program_store(std::shared_ptr<const vendor_device> owner, blob_cache cache)
      : owner_(std::move(owner)), cache_(std::move(cache)) {}
  /// For `rows` rows of one input. From memory, from disk, or compiled. Errors: device.
  result<std::shared_ptr<const vendor_executable>> get(std::span<const flywheel_matmul> ops, std::int64_t rows);

 private:
  result<std::vector<std::byte>> compile(const flywheel_part& part) const;
  [[nodiscard]] std::string key_of(const flywheel_part& part, const std::string& fingerprint) const;
  std::shared_ptr<const vendor_device> owner_;
  blob_cache cache_;
  std::mutex mutex_;
  std::map<std::string, std::weak_ptr<const vendor_executable>> loaded_;
};

}  // namespace flywheel::inline v0::device
