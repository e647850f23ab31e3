#include "cli/device_args.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "cli/output.hpp"

namespace flywheel::cli {
namespace {

constexpr std::string_view cpu = "cpu";

/// Whether the words behind a comma go on with a device's options.
bool is_key_value(std::string_view words) {
  const std::size_t equals = words.find_first_of("=?/,");
  return equals != std::string_view::npos && words[equals] == '=';
}

std::vector<std::string> split(std::string_view list) {
  std::vector<std::string> names;
  for (std::size_t begin = 0, from = 0;;) {
    const std::size_t comma = list.find(',', from);
    from = comma + 1;
    const bool in_options = list.substr(begin, comma - begin).find('?') != std::string_view::npos;
    if (comma != std::string_view::npos && in_options && is_key_value(list.substr(from))) continue;
    names.emplace_back(list.substr(begin, comma - begin));
    if (comma == std::string_view::npos) return names;
    begin = from;
  }
}

/// Where programs and caches of this user belong (XDG Base Directory Specification); empty: nobody says.
std::filesystem::path user_cache() {
  const char* xdg = std::getenv("XDG_CACHE_HOME");
  if (xdg != nullptr && std::filesystem::path(xdg).is_absolute()) return xdg;
  const char* home = std::getenv("HOME");
  return home != nullptr && *home != '\0' ? std::filesystem::path(home) / ".cache" : std::filesystem::path();
}

device::accelerator_options options_of(const device_args& args, const context& ctx) {
  device::accelerator_options options;
  options.min_multiply_adds = args.min_work;
  options.log = [ctx](log_level level, std::string_view message) { ctx.log(level, message); };
  if (args.no_blob_cache) return options;
  options.blob_cache = args.blob_cache;
  if (const std::filesystem::path folder = user_cache(); args.blob_cache.empty() && !folder.empty())
    options.blob_cache = folder / "flywheel" / "blobs";
  return options;
}

}  // namespace

void device_args::declare_devices(CLI::App& app) {
  app.add_option("-d,--device", lists,
                 "Devices to use, most wanted first: NAME[?OPTIONS] of those that 'flywheel devices' lists, or "
                 "PLUGIN.so[:NAME][?OPTIONS], separated by commas; may be repeated. The CPU does what none of them "
                 "does")
      ->expected(1)
      ->take_all();
  app.add_option("--min-work", min_work,
                 "Operations with fewer multiply-adds per token stay on the CPU; default: 0.5 per nanosecond of what "
                 "a device says that a submission costs")
      ->check(CLI::NonNegativeNumber);
}

void device_args::declare(CLI::App& app) {
  declare_devices(app);
  CLI::Option* folder = app.add_option("--blob-cache", blob_cache,
                                       "Folder for the programs compiled for devices; default: flywheel/blobs in the "
                                       "user's cache folder");
  app.add_flag("--no-blob-cache", no_blob_cache, "Compile programs for devices each time")->excludes(folder);
  app.add_option("--trace", trace,
                 "Write what the simulated device did, for chrome://tracing or ui.perfetto.dev, to this JSON file");
  app.add_flag("--device-report", report, "Show what simulated devices did on stderr; so does --verbose");
}

std::vector<std::string> device_args::names() const {
  std::vector<std::string> all;
  for (const std::string& list : lists)
    for (std::string& name : split(list)) all.push_back(std::move(name));
  if (std::find(all.begin(), all.end(), std::string()) != all.end())
    throw usage_error("--device", "holds an empty name; write devices as NAME,NAME");
  if (!all.empty() && all.back() == cpu) all.pop_back();
  if (std::find(all.begin(), all.end(), cpu) != all.end())
    throw usage_error("--device", "the CPU does everything that comes to it; name it last, or not at all");
  return all;
}

used_devices::used_devices(const device_args& args, const context& ctx, bool verbose)
    : trace_(args.trace), report_(args.report || verbose) {
  const device::accelerator_options options = options_of(args, ctx);
  for (const std::string& name : args.names()) {
    auto opened = device::open_device(name, ctx, options);
    if (!opened && (opened.error().code == errc::not_found || opened.error().code == errc::invalid_argument))
      throw usage_error("--device " + name, opened.error().to_string());
    opened_.push_back(std::move(opened).value());
  }
  const auto simulated = std::count_if(opened_.begin(), opened_.end(), [](const auto& o) { return o.simulator; });
  if (args.report && simulated == 0)
    throw usage_error("--device-report", "needs a simulated device, such as -d hexagon-sim");
  if (trace_.empty()) return;
  if (simulated != 1)
    throw usage_error("--trace", simulated == 0 ? "needs a simulated device, such as -d hexagon-sim"
                                                : "is of one simulated device; name one alone");
  for (const device::opened_device& o : opened_)
    if (o.simulator) o.simulator->start_trace();
}

std::vector<std::shared_ptr<const device::device>> used_devices::list() const {
  std::vector<std::shared_ptr<const device::device>> all;
  for (const device::opened_device& o : opened_) all.push_back(o.device);
  return all;
}

void used_devices::finish() const {
  for (const device::opened_device& o : opened_) {
    if (!o.simulator) continue;
    if (!trace_.empty()) o.simulator->write_trace(trace_).value();
    if (!report_) continue;
    finish_stdout();
    std::fprintf(stderr, "%s", printable_lines(o.simulator->describe()).c_str());
  }
}

}  // namespace flywheel::cli
