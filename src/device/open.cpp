#include "flywheel/device/open.hpp"

#include <cstring>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/device/plugin_library.hpp"

namespace flywheel::inline v0::device {
namespace {

constexpr std::string_view cpu_name = "cpu", hexagon_name = "hexagon-sim", xdna_name = "xdna-sim";

/// A plug-in's device together with the code that it consists of. The table of `this` stands before the plug-in's own,
/// since whoever got a table ends with close() and with nothing else that could release the library.
struct held_device {
  flywheel_device_table inner;
  std::shared_ptr<const plugin_library> library;
};

template <class Function>
struct forward;
template <class R, class... A>
struct forward<R (*)(flywheel_device*, A...)> {
  template <auto Member>
  static R call(flywheel_device* self, A... arguments) {
    const flywheel_device_table& inner = reinterpret_cast<held_device*>(self)->inner;
    return (inner.*Member)(inner.self, arguments...);
  }
};

void close_held(flywheel_device* self) {
  const std::unique_ptr<held_device> held(reinterpret_cast<held_device*>(self));
  if (held->inner.close != nullptr) held->inner.close(held->inner.self);
}

/// The table of `held`, which it takes over. Functions that are null stay so: make_accelerator says which are missing.
flywheel_device_table hold(std::unique_ptr<held_device> held) {
  const flywheel_device_table& inner = held->inner;
  flywheel_device_table out = inner;
  const auto pass_on = [&]<auto Member>(std::integral_constant<decltype(Member), Member>) {
    if (inner.*Member != nullptr) out.*Member = &forward<std::decay_t<decltype(inner.*Member)>>::template call<Member>;
  };
#define FLYWHEEL_PASS_ON(name) \
  pass_on(std::integral_constant<decltype(&flywheel_device_table::name), &flywheel_device_table::name>())
  FLYWHEEL_PASS_ON(caps);
  FLYWHEEL_PASS_ON(fingerprint);
  FLYWHEEL_PASS_ON(query);
  FLYWHEEL_PASS_ON(packed_size);
  FLYWHEEL_PASS_ON(pack);
  FLYWHEEL_PASS_ON(unpack);
  FLYWHEEL_PASS_ON(compile);
  FLYWHEEL_PASS_ON(load);
  FLYWHEEL_PASS_ON(unload);
  FLYWHEEL_PASS_ON(alloc);
  FLYWHEEL_PASS_ON(import_host);
  FLYWHEEL_PASS_ON(map);
  FLYWHEEL_PASS_ON(unmap);
  FLYWHEEL_PASS_ON(release);
  FLYWHEEL_PASS_ON(submit);
  FLYWHEEL_PASS_ON(wait);
  FLYWHEEL_PASS_ON(last_error);
#undef FLYWHEEL_PASS_ON
  out.close = close_held;
  out.self = reinterpret_cast<flywheel_device*>(held.release());
  return out;
}

error unknown(std::string_view name) {
  std::string known;
  for (const std::string& n : built_in_devices()) known += n + ", ";
  return {errc::not_found,
          "there is no such device; known are " + known + "and plug-ins by their file (PLUGIN.so:NAME)",
          std::string(name)};
}

result<opened_device> open_built_in(const device_spec& spec, const context& ctx, const accelerator_options& options) {
  if (spec.name == cpu_name) {
    if (!spec.options.empty())
      return error{errc::invalid_argument, "takes no options, but was given '" + spec.options + "'", spec.name};
    FLYWHEEL_TRY(std::shared_ptr<const device> cpu, make_cpu_device(ctx.isa().selected, ctx.activations()));
    return opened_device{std::move(cpu), nullptr, "built in"};
  }
  if (spec.name != hexagon_name && spec.name != xdna_name) return unknown(spec.name);
  FLYWHEEL_TRY(std::shared_ptr<simulated_npu> simulator, simulated_npu::create(spec.name, spec.options));
  FLYWHEEL_TRY(std::shared_ptr<const device> made, make_accelerator(simulator->table(), ctx.isa().selected, options));
  return opened_device{std::move(made), std::move(simulator), "simulated"};
}

}  // namespace

std::vector<std::string> built_in_devices() {
  return {std::string(cpu_name), std::string(hexagon_name), std::string(xdna_name)};
}

result<opened_device> open_device(std::string_view spec, const context& ctx, const accelerator_options& options) {
  return detail::guarded([&]() -> result<opened_device> {
    const device_spec wanted = parse_device_spec(spec);
    if (wanted.plugin.empty()) return open_built_in(wanted, ctx, options);
    auto held = std::make_unique<held_device>();
    FLYWHEEL_TRY(held->library, plugin_library::open(wanted.plugin));
    FLYWHEEL_TRY(const std::uint32_t index, held->library->find(wanted.name));
    FLYWHEEL_TRY(held->inner, held->library->open_table(index, wanted.options));
    FLYWHEEL_TRY(std::shared_ptr<const device> made,
                 make_accelerator(hold(std::move(held)), ctx.isa().selected, options));
    return opened_device{std::move(made), nullptr, wanted.plugin.string()};
  });
}

result<std::vector<std::string>> devices_of_plugin(const std::filesystem::path& plugin) {
  return detail::guarded([&]() -> result<std::vector<std::string>> {
    FLYWHEEL_TRY(const std::shared_ptr<const plugin_library> library, plugin_library::open(plugin));
    return library->names();
  });
}

}  // namespace flywheel::inline v0::device
