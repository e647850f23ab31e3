#include "device_conformance/check.hpp"
#include "flywheel/device/simulator.hpp"

namespace flywheel::kit {

bench::bench(const settings& s, trace& t) : settings_(s), spec_(device::parse_device_spec(s.device)), trace_(t) {}

probe& bench::device() {
  if (device_) return *device_;
  flywheel_device_table table = {};
  trace_.call = "open";
  if (const device::plugin_library* lib = library(); lib != nullptr) {
    table = lib->open_table(index_, spec_.options).value();
  } else {
    auto made = device::simulated_npu::create(spec_.name, spec_.options).value();
    table = made->table();
    simulator_ = std::move(made);
  }
  trace_.call = nullptr;
  device_ = std::make_unique<probe>(table, trace_, settings_.timeout);
  return *device_;
}

const device::plugin_library* bench::library() {
  if (!library_ && !spec_.plugin.empty()) {
    trace_.call = "flywheel_device_open";
    library_ = device::plugin_library::open(spec_.plugin).value();
    trace_.call = nullptr;
    index_ = library_->find(spec_.name).value();
  }
  return library_.get();
}

std::vector<flywheel_weight_format> bench::formats() {
  const flywheel_device_caps& caps = device().caps();
  const std::uint32_t count = std::min<std::uint32_t>(caps.n_weight_formats, FLYWHEEL_MAX_WEIGHT_FORMATS);
  return {caps.weight_formats, caps.weight_formats + count};
}

std::vector<check> all_checks() {
  std::vector<check> out;
  for (const std::span<const check> group : {interface_checks(), packing_checks(), program_checks(), memory_checks(),
                                             result_checks(), fence_checks(), measurements()})
    out.insert(out.end(), group.begin(), group.end());
  return out;
}

}  // namespace flywheel::kit
