// -d and the options that belong to it: which devices compute a model.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "flywheel/core/context.hpp"
#include "flywheel/device/open.hpp"

namespace CLI {
class App;
}

namespace flywheel::cli {

struct device_args {
  std::vector<std::string> lists;  ///< Of each -d.
  std::int64_t min_work = -1;      ///< accelerator_options::min_multiply_adds
  std::string blob_cache;
  bool no_blob_cache = false;
  std::string trace;
  bool report = false;

  /// Declares -d and --min-work, which decide who computes what.
  void declare_devices(CLI::App& app);
  /// All of them.
  void declare(CLI::App& app);
  /// What -d names, in order, without the CPU, which is always the last. A comma separates devices, but belongs to a
  /// device's options where a key=value follows it. Throws usage_error.
  [[nodiscard]] std::vector<std::string> names() const;
};

/// Devices while a command uses them.
class used_devices {
 public:
  used_devices() = default;
  /// Opens them, and starts the trace. Throws; usage_error for what is wrong with the command line.
  used_devices(const device_args& args, const context& ctx, bool verbose = false);

  [[nodiscard]] std::vector<std::shared_ptr<const device::device>> list() const;
  /// Writes the trace, and what simulated devices did to stderr. Throws.
  void finish() const;

 private:
  std::vector<device::opened_device> opened_;
  std::string trace_;
  bool report_ = false;
};

}  // namespace flywheel::cli
