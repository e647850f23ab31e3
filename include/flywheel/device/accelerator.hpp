// Devices behind the C table of plugin.h as devices of the core: what a vendor does not write.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>

#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/device/device.hpp"
#include "flywheel/device/plugin.h"

namespace flywheel::inline v0::device {

struct accelerator_options {
  /// Folder for compiled programs, created if missing; empty: they are compiled each time. Any number of processes may
  /// share it.
  std::filesystem::path blob_cache = {};
  std::uint64_t blob_cache_bytes = std::uint64_t{256} << 20;  ///< The least recently used go first beyond that.
  std::chrono::milliseconds timeout{10000};                   ///< A submission that takes longer is late.
  /// After a failure that is not the device's end, so often a submission, program or upload is tried again, and a late
  /// submission waited for again, `timeout` each time. Then the device is taken for lost.
  int retries = 3;
  /// Products with fewer multiply-adds per row are not worth a submission; below 0: derived from launch_seconds.
  std::int64_t min_multiply_adds = -1;
  log_sink log = {};  ///< Hears of each failure once, as a warning.
};

/// Takes over the table and its device, which is closed when the last user of the result is gone, also on error. It
/// takes `linear` nodes whose weights are in a format of its caps (Q8_CHANNEL, Q4_CHANNEL, Q8_G128, Q4_G128): norm and
/// rounding of activations before the products, bias, gate, activation and residual behind them are computed on the
/// host. Results are those of the CPU device, bit for bit. Errors: unsupported (another ABI, missing functions, caps
/// that make no sense), device.
[[nodiscard]] FLYWHEEL_API result<std::shared_ptr<const device>> make_accelerator(const flywheel_device_table& table,
                                                                                  std::string_view isa = {},
                                                                                  accelerator_options options = {});

}  // namespace flywheel::inline v0::device
