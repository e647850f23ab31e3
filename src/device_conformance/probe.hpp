// A device as the checks see it: its table, where each call leaves a trace, so that a crash, a hang or an exception has
// a name.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "flywheel/device/plugin.h"

namespace flywheel::kit {

/// A check found a fault; what() names it.
struct finding : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// The device did not finish: what follows could not be trusted.
struct hang : finding {
  using finding::finding;
};
/// The check does not apply to this device; what() says why.
struct not_applicable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Lies in memory that the parent process sees, and survives this one.
struct trace {
  std::atomic<const char*> call{nullptr};  ///< A function of the table that has not returned; null: none.
  std::atomic<std::uint64_t> beats{0};     ///< Calls begun and ended so far.
};

/// "out of memory"
[[nodiscard]] std::string name_of(flywheel_status status);

/// An open device. Thread-safe where the table is.
class probe {
 public:
  /// Takes over the table; `close` ends it. `timeout`: seconds that a submission may take.
  probe(const flywheel_device_table& table, trace& trace, double timeout);
  ~probe();
  probe(const probe&) = delete;
  probe& operator=(const probe&) = delete;

  [[nodiscard]] const flywheel_device_table& table() const noexcept { return table_; }
  [[nodiscard]] const flywheel_device_caps& caps();  ///< Read once.
  [[nodiscard]] double timeout() const noexcept { return timeout_; }

  /// Calls a function of the table. An exception is a finding: the interface is C. Does nothing while a finding unwinds
  /// the stack: what the device may still work with is neither released nor waited for.
  template <class R, class... P, class... A>
  R call(const char* name, R (*function)(flywheel_device*, P...), A... arguments) {
    if (std::uncaught_exceptions() > 0) {
      if constexpr (std::is_void_v<R>)
        return;
      else
        return FLYWHEEL_DEVICE_LOST;
    }
    if (function == nullptr) throw finding(std::string(name) + " is missing in the table");
    const moment in(trace_, name);
    try {
      return function(table_.self, arguments...);
    } catch (...) {
      throw finding(std::string(name) + " threw a C++ exception; functions of the table return a status");
    }
  }

  flywheel_status query(const flywheel_matmul& op, flywheel_support& out);
  flywheel_status packed_size(const flywheel_matmul& op, std::uint64_t& out) {
    return call("packed_size", table_.packed_size, &op, &out);
  }
  flywheel_status pack(const flywheel_matmul& op, const std::int8_t* codes, const float* scales, void* out) {
    return call("pack", table_.pack, &op, codes, scales, out);
  }
  flywheel_status unpack(const flywheel_matmul& op, const void* packed, std::int8_t* codes, float* scales) {
    return call("unpack", table_.unpack, &op, packed, codes, scales);
  }
  flywheel_status load(std::span<const std::byte> blob, flywheel_executable*& out) {
    return call("load", table_.load, static_cast<const void*>(blob.data()), std::uint64_t{blob.size()}, &out);
  }

  /// A program for the operations, or a finding.
  [[nodiscard]] std::vector<std::byte> compile(std::span<const flywheel_matmul> ops, std::uint32_t n_inputs);

  /// The fence of a submission that was accepted: not 0, and no other one's that is in flight.
  [[nodiscard]] flywheel_fence submit(flywheel_executable* program, const flywheel_bindings& bindings,
                                      std::span<const flywheel_fence> waits = {});
  /// Until the submission has ended; anything but success is a finding.
  void wait(flywheel_fence fence);
  /// The fence was waited for without wait().
  void forget(flywheel_fence fence);

  /// A finding unless `status` is FLYWHEEL_OK.
  void require(flywheel_status status, const std::string& what);

 private:
  struct moment {
    moment(trace& t, const char* name) : trace_(t) {
      trace_.call = name;
      ++trace_.beats;
    }
    ~moment() {
      trace_.call = nullptr;
      ++trace_.beats;
    }
    trace& trace_;
  };

  flywheel_device_table table_;
  flywheel_device_caps caps_ = {};
  trace& trace_;
  double timeout_;
  std::mutex mutex_;
  std::set<flywheel_fence> in_flight_;
};

/// Memory of the device.
class buffer {
 public:
  buffer(probe& device, std::uint64_t bytes);
  ~buffer();
  buffer(buffer&& other) noexcept;
  buffer& operator=(buffer&&) = delete;

  [[nodiscard]] flywheel_buffer* get() const noexcept { return handle_; }
  /// For the host, until unmap().
  [[nodiscard]] std::byte* map(std::uint32_t access = FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE);
  void unmap();

 private:
  probe* device_;
  flywheel_buffer* handle_ = nullptr;
};

/// A loaded program.
class program {
 public:
  program(probe& device, std::span<const std::byte> blob);
  ~program();
  program(const program&) = delete;
  program& operator=(const program&) = delete;
  [[nodiscard]] flywheel_executable* get() const noexcept { return handle_; }

 private:
  probe& device_;
  flywheel_executable* handle_ = nullptr;
};

}  // namespace flywheel::kit
