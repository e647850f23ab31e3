// The engine behind a model: its graphs, cut into parts for devices, with packed weights.
#pragma once

#include <memory>
#include <vector>

#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/device/device.hpp"
#include "flywheel/io/archive.hpp"
#include "src/model/architecture.hpp"
#include "src/model/engine.hpp"

namespace flywheel::inline v0::detail {

struct loaded_engine {
  std::unique_ptr<const detail::engine> engine;
  hyperparameters parameters;
  std::size_t weight_bytes = 0;
};

/// Builds, places on `devices` and the CPU, packs and compiles. `observer` may be null.
[[nodiscard]] result<loaded_engine> load_engine(const io::archive& file, const context& ctx, const control& control,
                                                std::vector<std::shared_ptr<const device::device>> devices,
                                                std::shared_ptr<device::observer> observer);

/// The same without tensor data: an engine that can be asked for sizes, but must not run.
[[nodiscard]] result<loaded_engine> measure_engine(const io::archive& file, const context& ctx);

}  // namespace flywheel::inline v0::detail
