#include <array>
#include <filesystem>
#include <optional>
#include <utility>

#include "cli/command.hpp"
#include "cli/devices/devices.hpp"
#include "cli/output.hpp"
#include "flywheel/device/open.hpp"

namespace flywheel::cli {
namespace {

/// A device by the name that -d takes.
struct listed_device {
  std::string spec;
  result<device::opened_device> opened;
};

std::vector<listed_device> open_all(const device_list_args& args) {
  const context ctx = args.common.make_context();
  std::vector<std::string> specs = device::built_in_devices();
  for (const std::string& plugin : args.plugins) {
    const std::vector<std::string> names = device::devices_of_plugin(plugin).value();
    // Absolute: a name without a slash would be taken for a built-in device's.
    for (const std::string& name : names) specs.push_back(std::filesystem::absolute(plugin).string() + ":" + name);
  }
  std::vector<listed_device> all;
  for (std::string& spec : specs) {
    auto opened = device::open_device(spec, ctx);
    all.push_back({std::move(spec), std::move(opened)});
  }
  return all;
}

json to_json(const listed_device& d) {
  if (!d.opened) return {{"device", d.spec}, {"problem", d.opened.error().to_string()}};
  const device::capabilities& c = d.opened->device->caps();
  json formats = json::array();
  for (const device::weight_format& f : c.weight_formats) formats.push_back({{"bits", f.bits}, {"group", f.group}});
  return {{"device", d.spec},
          {"name", c.name},
          {"origin", d.opened->origin},
          {"simulated", d.opened->simulator != nullptr},
          {"vendor", c.vendor},
          {"arch", c.arch},
          {"driver", c.driver},
          {"tile", c.tile},
          {"scratch_bytes", c.scratch_bytes},
          {"memory_bytes", c.memory_bytes},
          {"queues", c.queues},
          {"static_shapes", c.static_shapes},
          {"unified_memory", c.unified_memory},
          {"weight_formats", formats},
          {"multiply_adds_per_second", c.multiply_adds_per_second},
          {"bytes_per_second", c.bytes_per_second},
          {"launch_seconds", c.launch_seconds},
          {"min_multiply_adds", c.min_multiply_adds}};
}

std::string formats_text(const std::vector<device::weight_format>& formats) {
  std::string text;
  for (const device::weight_format& f : formats)
    text += (text.empty() ? "" : ", ") + std::to_string(f.bits) + " bits with a scale per " +
            (f.group == 0 ? "row" : std::to_string(f.group));
  return text.empty() ? "all that flywheel knows" : text;
}

std::string speed_text(const device::capabilities& c) {
  std::string text;
  const auto add = [&](double value, const std::string& shown) {
    if (value > 0) text += (text.empty() ? "" : ", ") + shown;
  };
  add(c.multiply_adds_per_second, decimal(c.multiply_adds_per_second / 1e12, 2) + " T multiply-adds/s");
  add(c.bytes_per_second, decimal(c.bytes_per_second / 1e9, 1) + " GB/s");
  add(c.launch_seconds, short_time(c.launch_seconds) + " per submission");
  return text;
}

std::string text_of(const listed_device& d) {
  if (!d.opened) return "  does not open: " + printable(d.opened.error().to_string()) + "\n";
  const device::capabilities& c = d.opened->device->caps();
  table rows({{"found"}, {d.opened->origin}});
  const auto add = [&](const char* what, const std::string& value) {
    if (!value.empty()) rows.row({what, value});
  };
  add("vendor", c.vendor);
  add("architecture", c.arch);
  add("driver", c.driver);
  add("weights", formats_text(c.weight_formats));
  const auto [m, n, k] = c.tile;
  if (m > 0) add("tile", std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k) + " (m x n x k)");
  if (c.scratch_bytes > 0) add("on-chip memory", human_bytes(c.scratch_bytes));
  add("memory", (c.memory_bytes > 0 ? human_bytes(c.memory_bytes) : "the host's") +
                    std::string(c.unified_memory ? ", shared without copies" : ", copied to and from"));
  add("queues", std::to_string(c.queues));
  add("programs", c.static_shapes ? "compiled for one number of rows" : "for any number of rows");
  add("peak", speed_text(c));
  return rows.text(2);
}

}  // namespace

std::string short_time(double seconds) {
  if (seconds < 1e-3) return decimal(seconds * 1e6, 1) + " us";
  return seconds < 1 ? decimal(seconds * 1e3, 2) + " ms" : decimal(seconds, 2) + " s";
}

int list_devices(const device_list_args& args) {
  const std::vector<listed_device> all = open_all(args);
  if (args.json) {
    json devices = json::array();
    for (const listed_device& d : all) devices.push_back(to_json(d));
    print_line(dump({{"devices", std::move(devices)}}));
    return success;
  }
  for (std::size_t i = 0; i < all.size(); ++i)
    print((i > 0 ? "\n" : "") + bold(printable(all[i].spec)) + "\n" + text_of(all[i]));
  return success;
}

}  // namespace flywheel::cli
