// A plug-in of plugin.h, open. A header, so that the conformance kit, which looks at the C table itself, has it from a
// shared flywheel, too.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "flywheel/core/result.hpp"
#include "flywheel/device/plugin.h"
#include "src/device/status.hpp"

#if !defined(_WIN32) && !defined(FLYWHEEL_SERIAL)
#  include <dlfcn.h>
#  define FLYWHEEL_HAS_DLOPEN 1
#endif

namespace flywheel::inline v0::device {

/// "PLUGIN.so[:NAME]" or NAME, then optionally "?OPTIONS".
struct device_spec {
  std::string name;              ///< Empty: the plug-in's first.
  std::filesystem::path plugin;  ///< Empty: built in.
  std::string options;
};

/// A word with a dot or a slash, which no device's name has, is a plug-in.
inline device_spec parse_device_spec(std::string_view spec) {
  device_spec out;
  if (const std::size_t question = spec.find('?'); question != std::string_view::npos) {
    out.options = spec.substr(question + 1);
    spec = spec.substr(0, question);
  }
  if (spec.find_first_of("./\\") == std::string_view::npos) {
    out.name = spec;
    return out;
  }
  const std::size_t colon = spec.rfind(':');
  std::error_code ignored;
  if (colon != std::string_view::npos && spec.find_first_of("./\\", colon) == std::string_view::npos &&
      !std::filesystem::exists(std::filesystem::path(spec), ignored)) {
    out.name = spec.substr(colon + 1);
    spec = spec.substr(0, colon);
  }
  out.plugin = std::filesystem::path(spec);
  return out;
}

/// Immutable once open; thread-safe as far as the plug-in's factory is. What it gave must be closed before it goes.
class plugin_library {
 public:
  static result<std::shared_ptr<const plugin_library>> open(const std::filesystem::path& file) {
    const std::string where = file.string();
#if defined(FLYWHEEL_HAS_DLOPEN)
    std::error_code failed;
    if (!std::filesystem::exists(file, failed))
      return error{errc::not_found, "there is no such plug-in; name the shared library that the vendor built", where};
    if (!std::filesystem::is_regular_file(file, failed) || !std::ifstream(file, std::ios::binary))
      return error{errc::io, "is no readable file; name the shared library that the vendor built", where};
    // With a folder in its name it is this file, not one that the loader's search path has.
    const std::string path = std::filesystem::absolute(file, failed).string();
    std::shared_ptr<plugin_library> out(new plugin_library);
    out->handle_ = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (out->handle_ == nullptr) {
      const char* why = ::dlerror();
      return error{errc::unsupported,
                   std::string("is no plug-in: the system cannot load it as a shared library (") +
                       (why == nullptr ? "no reason given" : why) +
                       "); build it for this machine, and link what it needs",
                   where};
    }
    using entry_point = flywheel_status (*)(std::uint32_t, flywheel_device_factory*);
    const auto entry = reinterpret_cast<entry_point>(::dlsym(out->handle_, "flywheel_device_open"));
    if (entry == nullptr)
      return error{errc::unsupported,
                   "is no flywheel plug-in: it exports no flywheel_device_open; a device implements "
                   "flywheel/device/plugin.h",
                   where};
    out->entry_ = entry;
    flywheel_device_factory& factory = out->factory_;
    factory.size = sizeof factory;
    const flywheel_status status = entry(FLYWHEEL_DEVICE_ABI, &factory);
    if (status == FLYWHEEL_INCOMPATIBLE)
      return error{errc::unsupported,
                   "was built for another ABI of device plug-ins than " + std::to_string(FLYWHEEL_DEVICE_ABI) +
                       "; build it against the plugin.h of this flywheel",
                   where};
    if (status != FLYWHEEL_OK)
      return error{
          errc::unsupported,
          "its flywheel_device_open answers '" + std::string(to_string_of_status(status)) + "'; ask its vendor", where};
    if (factory.count == 0 || factory.name == nullptr || factory.open == nullptr)
      return error{errc::unsupported, "has no device, or lacks the functions to name and open one; ask its vendor",
                   where};
    for (std::uint32_t i = 0; i < factory.count; ++i)
      if (factory.name(i) == nullptr)
        return error{errc::unsupported, "has no name for its device " + std::to_string(i) + "; ask its vendor", where};
    out->where_ = where;
    return std::shared_ptr<const plugin_library>(std::move(out));
#else
    return error{errc::unsupported, "this build of flywheel loads no plug-ins: it has no dlopen", where};
#endif
  }
  ~plugin_library() {
#if defined(FLYWHEEL_HAS_DLOPEN)
    if (handle_ != nullptr) ::dlclose(handle_);
#endif
  }
  plugin_library(const plugin_library&) = delete;
  plugin_library& operator=(const plugin_library&) = delete;

  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (std::uint32_t i = 0; i < factory_.count; ++i) out.emplace_back(factory_.name(i));
    return out;
  }

  /// Of the device called so, the first if `name` is empty. Error: not_found.
  [[nodiscard]] result<std::uint32_t> find(std::string_view name) const {
    std::string known;
    for (std::uint32_t i = 0; i < factory_.count; ++i) {
      const std::string_view candidate = factory_.name(i);
      if (name.empty() || candidate == name) return i;
      known += (i == 0 ? "" : ", ") + std::string(candidate);
    }
    return error{errc::not_found, "has no device '" + std::string(name) + "'; it has " + known, where_};
  }

  /// The device's table as it filled it in. Errors: invalid_argument (options), device.
  [[nodiscard]] result<flywheel_device_table> open_table(std::uint32_t index, const std::string& options) const {
    // A device that writes beyond `size` was built against another header: what it wrote cannot be trusted.
    struct {
      flywheel_device_table table;
      std::array<unsigned char, 128> beyond;
    } room;
    std::memset(static_cast<void*>(&room), 0, sizeof room);
    room.beyond.fill(0xA5);
    room.table.size = sizeof room.table;
    const flywheel_status status = factory_.open(index, options.empty() ? nullptr : options.c_str(), &room.table);
    const std::string name = factory_.name(index);
    if (status == FLYWHEEL_INVALID_ARGUMENT && !options.empty())
      return error{errc::invalid_argument, "the device '" + name + "' does not take the options '" + options + "'",
                   where_};
    if (status != FLYWHEEL_OK)
      return error{errc::device, "cannot open the device '" + name + "': " + std::string(to_string_of_status(status)),
                   where_};
    if (std::any_of(room.beyond.begin(), room.beyond.end(), [](unsigned char c) { return c != 0xA5; })) {
      // Nor can its device be closed, whose threads may run: the library is never unloaded.
      keep_loaded();
      return error{errc::unsupported,
                   "the device '" + name +
                       "' wrote beyond the size of the table; build it against the plugin.h of "
                       "this flywheel",
                   where_};
    }
    return room.table;
  }

  /// What flywheel_device_open answers to another ABI, for the conformance kit.
  [[nodiscard]] flywheel_status answer_to_abi(std::uint32_t abi) const {
    flywheel_device_factory unused = {};
    unused.size = sizeof unused;
    return entry_(abi, &unused);
  }

 private:
  plugin_library() = default;
  void keep_loaded() const { handle_ = nullptr; }
  mutable void* handle_ = nullptr;
  flywheel_status (*entry_)(std::uint32_t, flywheel_device_factory*) = nullptr;
  flywheel_device_factory factory_ = {};
  std::string where_;
};

}  // namespace flywheel::inline v0::device
