// A calibration text on its way through a model whose activations are looked at.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/device/observer.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::quant {

struct observed_run {
  std::string_view text;
  std::int32_t chunk = 512;     ///< Tokens of a window.
  std::int64_t max_chunks = 0;  ///< At most so many windows, evenly from the text; 0: all of it.
  std::shared_ptr<device::observer> observer;
  context ctx;                ///< Not empty.
  flywheel::control control;  ///< Progress in windows.
  std::string_view what;      ///< For progress.
};

/// Runs the text in windows as evaluate::cut_windows cuts it, every row through every weight, the output head included.
/// Gives the number of windows. Errors: those of opening, cutting and running.
[[nodiscard]] result<std::uint32_t> run_observed(const io::archive& file, const observed_run& run);

}  // namespace flywheel::inline v0::quant
