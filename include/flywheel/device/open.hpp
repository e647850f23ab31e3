// Devices by name.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/device/accelerator.hpp"
#include "flywheel/device/device.hpp"
#include "flywheel/device/simulator.hpp"

namespace flywheel::inline v0::device {

struct opened_device {
  std::shared_ptr<const flywheel::device::device> device;
  std::shared_ptr<simulated_npu> simulator;  ///< Null for others.
  std::string origin;                        ///< How it was found: "built in", "simulated", or the plug-in's path.
};

/// The names of what needs no plug-in: "cpu", "hexagon-sim", "xdna-sim".
[[nodiscard]] FLYWHEEL_API std::vector<std::string> built_in_devices();

/// `spec` is NAME or PLUGIN.so[:NAME], then optionally ?OPTIONS for the device (see simulated_npu; a plug-in's own):
/// such as "xdna-sim?seed=3,faults=timeout". Of a plug-in with several devices, the first if none is named. The CPU
/// takes the ISA cluster and activations of `ctx`. Errors: not_found (an unknown name, listing the known ones; no such
/// file), io, unsupported (no flywheel plug-in, another ABI), invalid_argument (options).
[[nodiscard]] FLYWHEEL_API result<opened_device> open_device(std::string_view spec, const context& ctx,
                                                             const accelerator_options& options = {});

/// Every device of a plug-in.
[[nodiscard]] FLYWHEEL_API result<std::vector<std::string>> devices_of_plugin(const std::filesystem::path& plugin);

}  // namespace flywheel::inline v0::device
