// Buffers through which activations go to a device and results come back. Any number of models and sessions share those
// of a device; there are as many as were in use at the same time.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "flywheel/detail/try.hpp"
#include "src/device/accelerator/buckets.hpp"
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

  /// Submissions of this bucket need so many bytes: what is taken from now on has them.
  void expect(std::size_t bucket, std::uint64_t input_bytes, std::uint64_t output_bytes) {
    const std::scoped_lock lock(mutex_);
    shelf& s = shelves_[bucket];
    if (input_bytes <= s.input_bytes && output_bytes <= s.output_bytes) return;
    s.input_bytes = std::max(s.input_bytes, input_bytes);
    s.output_bytes = std::max(s.output_bytes, output_bytes);
    s.free.clear();  // too small now
  }

  /// Errors: device.
  result<io_buffers> take(std::size_t bucket) {
    std::uint64_t input_bytes = 0, output_bytes = 0;
    {
      const std::scoped_lock lock(mutex_);
      shelf& s = shelves_[bucket];
      if (!s.free.empty()) {
        io_buffers out = std::move(s.free.back());
        s.free.pop_back();
        return out;
      }
      input_bytes = s.input_bytes, output_bytes = s.output_bytes;
    }
    io_buffers out;
    FLYWHEEL_TRY(out.input, vendor_buffer::make(owner_, input_bytes));
    FLYWHEEL_TRY(out.output, vendor_buffer::make(owner_, output_bytes));
    return out;
  }

  void give_back(std::size_t bucket, io_buffers used) {
    const std::scoped_lock lock(mutex_);
    shelf& s = shelves_[bucket];
    if (used.input.bytes() >= s.input_bytes && used.output.bytes() >= s.output_bytes) s.free.push_back(std::move(used));
  }

 private:
  struct shelf {
    std::uint64_t input_bytes = 0, output_bytes = 0;
    std::vector<io_buffers> free;
  };
  std::shared_ptr<const vendor_device> owner_;
  std::mutex mutex_;
  std::array<shelf, bucket_rows.size()> shelves_;
};

}  // namespace flywheel::inline v0::device
