// A C table as C++: checked once, closed when its last user is gone, handles that release themselves, errors with
// words.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/device/accelerator.hpp"
#include "flywheel/device/plugin.h"
#include "src/device/status.hpp"

namespace flywheel::inline v0::device {

/// Thread-safe, as the table is.
class vendor_device : public std::enable_shared_from_this<vendor_device> {
 public:
  /// Takes over the table, and closes its device on error too.
  static result<std::shared_ptr<vendor_device>> adopt(const flywheel_device_table& table, accelerator_options options);
  ~vendor_device();
  vendor_device(const vendor_device&) = delete;
  vendor_device& operator=(const vendor_device&) = delete;

  [[nodiscard]] const flywheel_device_caps& caps() const noexcept { return caps_; }
  [[nodiscard]] const accelerator_options& options() const noexcept { return options_; }
  [[nodiscard]] const flywheel_device_table& table() const noexcept { return table_; }
  [[nodiscard]] flywheel_device* self() const noexcept { return table_.self; }
  [[nodiscard]] std::string name() const { return caps_.name; }
  [[nodiscard]] result<std::string> fingerprint() const;

  /// How long a submission may take, all in all.
  [[nodiscard]] std::chrono::nanoseconds patience() const noexcept { return timeout() * (options_.retries + 1); }
  [[nodiscard]] std::chrono::nanoseconds timeout() const noexcept {
    using std::chrono::milliseconds;
    return std::clamp(options_.timeout, milliseconds(1), milliseconds(std::chrono::hours(24 * 365)));
  }

  /// Whether the device was found to be lost; nothing is asked of it any more then.
  [[nodiscard]] bool lost() const noexcept { return lost_.load(std::memory_order_relaxed); }
  /// From now on it is; returns the error that runs end with.
  error lose(std::string_view why) const;
  /// The same for a call that failed, with the device's own words.
  error lose(std::string_view what, flywheel_status status) const { return lose(failure(what, status).message); }
  /// A place for one submission, of max_in_flight in all. Taken before submitting, given back when its fence is gone.
  [[nodiscard]] bool try_take_place() const;
  /// Waits for one, so long; only for who holds none. False: there was none, or the device is lost.
  [[nodiscard]] bool take_place(std::chrono::milliseconds patience) const;
  void give_place() const;

  /// Tells the log of one failure, with the device's own words; not of the device's end.
  void warn(std::string_view what, flywheel_status status) const;
  /// "what: status (the device's words)" as an error.
  [[nodiscard]] error failure(std::string_view what, flywheel_status status) const;

  /// Calls `call` until it succeeds, at most options().retries times more than once; each failure is told to the log. A
  /// device that is lost, or that fails every time, is lost; `unsupported` and invalid arguments are not tried again.
  template <class Call>
  flywheel_status persist(std::string_view what, Call&& call) const {
    for (int attempt = 0;; ++attempt) {
      const flywheel_status status = call();
      if (status == FLYWHEEL_OK || status == FLYWHEEL_UNSUPPORTED) return status;
      warn(what, status);
      if (status == FLYWHEEL_DEVICE_LOST || status == FLYWHEEL_INVALID_ARGUMENT || attempt >= options_.retries)
        return status;
    }
  }

 private:
  vendor_device(const flywheel_device_table& table, accelerator_options options)
      : table_(table), options_(std::move(options)) {}
  result<void> check();
  [[nodiscard]] std::string words() const;

  flywheel_device_table table_{};
  flywheel_device_caps caps_{};
  accelerator_options options_;
  mutable std::atomic<bool> lost_{false};
  mutable std::mutex mutex_;
  mutable std::condition_variable freed_;
  mutable std::uint32_t in_flight_ = 0;  ///< Under mutex_.
};

/// Memory that the device reads or writes: its own, or the host's where both share memory.
class vendor_buffer {
 public:
  vendor_buffer() = default;
  vendor_buffer(vendor_buffer&& other) noexcept { *this = std::move(other); }
  vendor_buffer& operator=(vendor_buffer&& other) noexcept;
  ~vendor_buffer() { release(); }

  /// Errors: device.
  static result<vendor_buffer> make(std::shared_ptr<const vendor_device> owner, std::uint64_t bytes);

  [[nodiscard]] flywheel_buffer* get() const noexcept { return handle_; }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] flywheel_status map(std::uint32_t access, void*& out) const;
  [[nodiscard]] flywheel_status unmap() const;

 private:
  void release() noexcept;
  std::shared_ptr<const vendor_device> owner_;
  flywheel_buffer* handle_ = nullptr;
  std::uint64_t bytes_ = 0;
  buffer host_;  ///< What was imported.
};

class vendor_executable {
 public:
  vendor_executable() = default;
  explicit vendor_executable(std::shared_ptr<const vendor_device> owner) : owner_(std::move(owner)) {}
  vendor_executable(vendor_executable&& other) noexcept
      : owner_(std::move(other.owner_)), handle_(std::exchange(other.handle_, nullptr)) {}
  vendor_executable& operator=(vendor_executable&&) = delete;
  ~vendor_executable() {
    if (handle_) owner_->table().unload(owner_->self(), handle_);
  }
  [[nodiscard]] flywheel_executable* get() const noexcept { return handle_; }
  /// For load().
  [[nodiscard]] flywheel_executable** place() noexcept { return &handle_; }

 private:
  std::shared_ptr<const vendor_device> owner_;
  flywheel_executable* handle_ = nullptr;
};

}  // namespace flywheel::inline v0::device
