// Buffers through which activations go to a device and results come back. Any number of models and sessions share those
// of a device.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "flywheel/core/result.hpp"
#include "src/device/accelerator/vendor_device.hpp"

namespace flywheel::inline v0::device {

/// Memory of one submission.
struct io_buffers {
  vendor_buffer input, output;
};

/// Thread-safe.
class io_pool {
 public:
  explicit io_pool(std::shared_ptr<const vendor_device> owner) : owner_(std::move(owner)) {}

  /// A buffer of at least so many bytes; a quarter more at most, so that similar products share them. Errors: device.
  result<vendor_buffer> take(std::uint64_t bytes);
  void give_back(vendor_buffer used);
  /// A submission that nobody waits for. Its memory, its place on the device and what else it uses are kept until it
  /// has ended; one that never does makes the device a lost one.
  void abandon(flywheel_fence fence, io_buffers memory, std::shared_ptr<const void> program,
               std::shared_ptr<const void> weights);
  /// Looks which abandoned submissions have ended.
  void collect();

 private:
  void collect_locked();
  struct orphan {
    flywheel_fence fence;
    std::chrono::steady_clock::time_point since;
    std::shared_ptr<const void> program, weights;
    io_buffers memory;
  };
  std::shared_ptr<const vendor_device> owner_;
  std::mutex mutex_;
  std::map<std::uint64_t, std::vector<vendor_buffer>> free_;  ///< By size.
  std::uint64_t free_bytes_ = 0;
  std::vector<orphan> orphans_;
};

}  // namespace flywheel::inline v0::device
