// The parts of `flywheel devices`: the list, and plans of models.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/args.hpp"

namespace flywheel::cli {

struct device_list_args {
  model_args common;  // only the context's options are used
  std::vector<std::string> plugins;
  bool json = false;
};
int list_devices(const device_list_args& args);

struct device_plan_args {
  model_args model;
  std::int64_t positions = 1024;
  bool all = false;
  bool json = false;
};
int plan_devices(const device_plan_args& args);

/// "12.3 us", "4.56 ms", "1.2 s".
[[nodiscard]] std::string short_time(double seconds);

}  // namespace flywheel::cli
