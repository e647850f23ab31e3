// What a check is, and what it works with.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "cli/output.hpp"
#include "device_conformance/probe.hpp"
#include "device_conformance/workload.hpp"
#include "src/device/plugin_library.hpp"

namespace flywheel::kit {

using cli::json;

struct settings {
  std::string device;  ///< As open_device takes it.
  bool quick = false;
  std::uint64_t seed = 1;
  double timeout = 30;  ///< Seconds.
  /// Groups of checks; empty: all, without which nothing is said to conform.
  std::vector<std::string> only;
};

/// What the checks of a group share: an open device.
class bench {
 public:
  bench(const settings& s, trace& t);

  [[nodiscard]] const settings& options() const noexcept { return settings_; }
  /// Opened when it is first asked for, and after close().
  [[nodiscard]] probe& device();
  void close() { device_.reset(); }
  /// Null for a built-in device.
  [[nodiscard]] const device::plugin_library* library();
  [[nodiscard]] std::uint32_t index() const noexcept { return index_; }
  /// The same numbers for a check, whatever ran before it.
  [[nodiscard]] std::mt19937_64 random(std::uint64_t stream) const {
    return std::mt19937_64(settings_.seed * 1000003 + stream);
  }
  [[nodiscard]] std::vector<flywheel_weight_format> formats();

  /// Said beside the outcome: what was covered.
  std::string note;
  /// For reports: "caps", "fingerprint", "throughput".
  json facts = json::object();

 private:
  settings settings_;
  device::device_spec spec_;
  trace& trace_;
  std::shared_ptr<const device::plugin_library> library_;
  std::shared_ptr<void> simulator_;
  std::uint32_t index_ = 0;
  std::unique_ptr<probe> device_;  // last: it ends before what it stands on
};

struct check {
  const char* group;
  const char* id;
  const char* what;
  bool mandatory;
  void (*run)(bench&);
};

/// All of them, those of a group side by side.
[[nodiscard]] std::vector<check> all_checks();
// By group.
[[nodiscard]] std::span<const check> interface_checks();
[[nodiscard]] std::span<const check> packing_checks();
[[nodiscard]] std::span<const check> program_checks();
[[nodiscard]] std::span<const check> memory_checks();
[[nodiscard]] std::span<const check> result_checks();
[[nodiscard]] std::span<const check> fence_checks();
[[nodiscard]] std::span<const check> measurements();

/// A finding unless `condition`.
inline void expect(bool condition, const std::string& otherwise) {
  if (!condition) throw finding(otherwise);
}

}  // namespace flywheel::kit
