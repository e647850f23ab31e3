// The table, caps, fingerprint and query.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>

#include "device_conformance/check.hpp"

namespace flywheel::kit {
namespace {

/// A struct with a fence behind it, that shows writes beyond its size.
template <class T>
struct guarded_struct {
  T value;
  unsigned char beyond[64];
  guarded_struct() {
    std::memset(static_cast<void*>(&value), 0, sizeof value);
    std::memset(beyond, 0xA5, sizeof beyond);
    value.size = sizeof value;
  }
  [[nodiscard]] bool intact() const {
    return std::all_of(std::begin(beyond), std::end(beyond), [](unsigned char c) { return c == 0xA5; });
  }
};

template <std::size_t N>
std::string text_of(const char (&field)[N], const char* name) {
  const auto* end = static_cast<const char*>(std::memchr(field, 0, N));
  expect(end != nullptr, std::string("caps.") + name + " has no zero at its end");
  return {field, end};
}

void check_table(bench& b) {
  const flywheel_device_table& t = b.device().table();
  std::string missing;
  const auto need = [&](bool there, const char* name) {
    if (!there) missing += (missing.empty() ? "" : ", ") + std::string(name);
  };
  need(t.close != nullptr, "close");
  need(t.caps != nullptr, "caps");
  need(t.fingerprint != nullptr, "fingerprint");
  need(t.query != nullptr, "query");
  need(t.packed_size != nullptr, "packed_size");
  need(t.pack != nullptr, "pack");
  need(t.unpack != nullptr, "unpack");
  need(t.compile != nullptr, "compile");
  need(t.load != nullptr, "load");
  need(t.unload != nullptr, "unload");
  need(t.alloc != nullptr, "alloc");
  need(t.map != nullptr, "map");
  need(t.unmap != nullptr, "unmap");
  need(t.release != nullptr, "release");
  need(t.submit != nullptr, "submit");
  need(t.wait != nullptr, "wait");
  expect(missing.empty(), "the table lacks " + missing + "; only import_host and last_error may be null");
}

void check_abi(bench& b) {
  const device::plugin_library* library = b.library();
  if (library == nullptr) throw not_applicable("built in");
  const flywheel_status status = library->answer_to_abi(FLYWHEEL_DEVICE_ABI + 1000);
  expect(status == FLYWHEEL_INCOMPATIBLE, "flywheel_device_open answered " + name_of(status) + " to the ABI " +
                                              std::to_string(FLYWHEEL_DEVICE_ABI + 1000) +
                                              ", which nobody knows; it must be 'incompatible'");
}

void check_options(bench& b) {
  const device::plugin_library* library = b.library();
  if (library == nullptr) throw not_applicable("built in");
  b.close();  // some hardware is opened once
  const auto opened = library->open_table(b.index(), "no_such_option=1");
  if (opened && opened->close != nullptr) opened->close(opened->self);
  expect(!opened, "open took the option 'no_such_option=1': a user's misspelt option would be ignored silently");
  expect(opened.error().code == errc::invalid_argument,
         "open refused an unknown option, but not with FLYWHEEL_INVALID_ARGUMENT: " + opened.error().message);
}

json caps_json(const flywheel_device_caps& c) {
  json formats = json::array();
  for (std::uint32_t i = 0; i < c.n_weight_formats; ++i)
    formats.push_back({{"bits", c.weight_formats[i].bits}, {"group", c.weight_formats[i].group}});
  return {{"name", c.name},
          {"vendor", c.vendor},
          {"arch", c.arch},
          {"driver", c.driver},
          {"abi", c.abi},
          {"tile", {c.tile_m, c.tile_n, c.tile_k}},
          {"alignment", c.alignment},
          {"scratch_bytes", c.scratch_bytes},
          {"memory_bytes", c.memory_bytes},
          {"max_buffer_bytes", c.max_buffer_bytes},
          {"queues", c.queues},
          {"max_in_flight", c.max_in_flight},
          {"static_shapes", c.static_shapes != 0},
          {"unified_memory", c.unified_memory != 0},
          {"multiply_adds_per_second", c.multiply_adds_per_second},
          {"bytes_per_second", c.bytes_per_second},
          {"launch_seconds", c.launch_seconds},
          {"weight_formats", formats}};
}

void check_caps(bench& b) {
  probe& d = b.device();
  guarded_struct<flywheel_device_caps> first, second;
  for (auto* c : {&first, &second}) {
    d.require(d.call("caps", d.table().caps, &c->value), "caps");
    expect(c->intact(), "caps wrote beyond the size of its struct");
  }
  const flywheel_device_caps& c = first.value;
  const std::string name = text_of(c.name, "name");
  text_of(c.vendor, "vendor");
  text_of(c.arch, "arch");
  text_of(c.driver, "driver");
  expect(c.abi == FLYWHEEL_DEVICE_ABI,
         "caps.abi is " + std::to_string(c.abi) + "; this kit knows " + std::to_string(FLYWHEEL_DEVICE_ABI));
  expect(!name.empty() && name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") ==
                              std::string::npos,
         "caps.name '" + name + "' must have letters, digits, '-' and '_' only, and at least one");
  expect(c.alignment >= 1 && c.alignment <= 4096 && (c.alignment & (c.alignment - 1)) == 0,
         "caps.alignment is " + std::to_string(c.alignment) + "; it must be a power of two, at most 4096");
  expect(c.tile_m >= 1 && c.tile_n >= 1 && c.tile_k >= 1, "caps.tile_m, tile_n and tile_k must be at least 1");
  expect(c.queues >= 1, "caps.queues is 0; a device has at least one");
  expect(c.max_in_flight >= 1, "caps.max_in_flight is 0; at least one submission must be possible");
  expect(c.static_shapes <= 1 && c.unified_memory <= 1, "caps.static_shapes and unified_memory must be 0 or 1");
  for (const double rate : {c.multiply_adds_per_second, c.bytes_per_second, c.launch_seconds})
    expect(std::isfinite(rate) && rate >= 0, "caps has a rate or time that is negative or not finite");
  expect(c.n_weight_formats >= 1 && c.n_weight_formats <= FLYWHEEL_MAX_WEIGHT_FORMATS,
         "caps.n_weight_formats is " + std::to_string(c.n_weight_formats) + "; it must be in 1.." +
             std::to_string(FLYWHEEL_MAX_WEIGHT_FORMATS));
  for (std::uint32_t i = 0; i < c.n_weight_formats; ++i) {
    const flywheel_weight_format& f = c.weight_formats[i];
    expect((f.bits == 8 || f.bits == 4) && f.group >= 0,
           "caps.weight_formats[" + std::to_string(i) + "] has " + std::to_string(f.bits) + " bits and group " +
               std::to_string(f.group) + "; bits must be 8 or 4, group at least 0");
  }
  expect(std::memcmp(&first.value, &second.value, sizeof first.value) == 0, "two calls of caps gave different answers");
  b.facts["caps"] = caps_json(c);
  b.note = name;
}

void check_short_caps(bench& b) {
  probe& d = b.device();
  flywheel_device_caps whole = {};
  std::memset(static_cast<void*>(&whole), 0xA5, sizeof whole);
  whole.size = 72;  // size, abi, name
  d.require(d.call("caps", d.table().caps, &whole), "caps with a smaller struct");
  const auto* bytes = reinterpret_cast<const unsigned char*>(&whole);
  expect(std::all_of(bytes + 72, bytes + sizeof whole, [](unsigned char c) { return c == 0xA5; }),
         "caps wrote beyond caps.size: a program built for an older, shorter struct would be damaged");
}

std::string fingerprint_of(probe& d, std::uint32_t room, bool must_fit = true) {
  std::vector<char> text(room + 64, '\x5A');
  const flywheel_status status = d.call("fingerprint", d.table().fingerprint, text.data(), room);
  expect(std::all_of(text.begin() + room, text.end(), [](char c) { return c == '\x5A'; }),
         "fingerprint wrote beyond the " + std::to_string(room) + " bytes that it was given");
  if (status == FLYWHEEL_INVALID_ARGUMENT && !must_fit) return {};
  d.require(status, "fingerprint");
  const auto end = std::find(text.begin(), text.begin() + room, '\0');
  expect(end != text.begin() + room, "fingerprint has no zero at its end");
  return {text.begin(), end};
}

void check_fingerprint(bench& b) {
  const std::string first = fingerprint_of(b.device(), 256);
  expect(!first.empty(), "fingerprint is empty: blobs of other drivers would be taken for this one's");
  expect(fingerprint_of(b.device(), 256) == first, "two calls of fingerprint gave different answers");
  (void)fingerprint_of(b.device(), 4, false);  // refused, or shortened
  b.close();
  expect(fingerprint_of(b.device(), 256) == first,
         "fingerprint changes when the device is opened again: every start would compile everything");
  b.facts["fingerprint"] = first;
  b.note = first;
}

void check_query(bench& b) {
  probe& d = b.device();
  for (const flywheel_weight_format& f : b.formats())
    for (const std::int64_t rows : {0, 1, 32}) {
      const flywheel_matmul op = make_op(rows, 256, 512, f);
      guarded_struct<flywheel_support> s, again;
      d.require(d.call("query", d.table().query, &op, &s.value), "query of a " + describe(op));
      expect(s.intact(), "query wrote beyond the size of its struct");
      expect(s.value.ok == 1, "caps declares " + describe(f) + ", but query refuses a " + describe(op) + ": " +
                                  std::string(s.value.reason, strnlen(s.value.reason, sizeof s.value.reason)));
      expect(std::isfinite(s.value.seconds) && s.value.seconds >= 0, "query expects a negative or infinite time");
      d.require(d.call("query", d.table().query, &op, &again.value), "query");
      expect(std::memcmp(&s.value, &again.value, sizeof s.value) == 0,
             "query gave two answers to the same question: it must be pure");
    }
}

void check_refusals(bench& b) {
  probe& d = b.device();
  const auto refused = [&](const flywheel_matmul& op, const std::string& what) {
    flywheel_support s = {};
    const flywheel_status status = d.query(op, s);
    if (status == FLYWHEEL_UNSUPPORTED || (status == FLYWHEEL_INVALID_ARGUMENT && op.kind == FLYWHEEL_OP_MATMUL))
      return;
    expect(status == FLYWHEEL_OK, "query of " + what + " answered " + name_of(status));
    expect(s.ok == 0, "query accepts " + what);
    expect(s.reason[0] != 0, "query refuses " + what + " without a reason");
  };
  flywheel_matmul op = make_op(1, 256, 512, b.formats().front());
  op.kind = 999;
  refused(op, "an operation of the unknown kind 999");
  op = make_op(1, 256, 512, {3, 0});
  refused(op, "3-bit weights, which caps does not declare");
  op = make_op(1, 256, 512, {8, 7});
  refused(op, "a scale per 7 elements, which caps does not declare");
  op = make_op(1, 256, 131072, b.formats().front());
  refused(op, "k 131072, more than the 131071 of the interface");
}

constexpr check interface_list[] = {
    {"interface", "table.complete", "every function that is not optional is there", true, check_table},
    {"interface", "table.abi", "another ABI is refused", true, check_abi},
    {"interface", "table.options", "unknown options are refused", true, check_options},
    {"interface", "caps.sane", "caps make sense and do not change", true, check_caps},
    {"interface", "caps.size", "a shorter struct is respected", true, check_short_caps},
    {"interface", "fingerprint.stable", "the fingerprint stays the same", true, check_fingerprint},
    {"interface", "query.formats", "declared formats are accepted for normal shapes", true, check_query},
    {"interface", "query.refuses", "what is unknown is refused, with a reason", true, check_refusals},
};

}  // namespace

std::span<const check> interface_checks() { return interface_list; }

}  // namespace flywheel::kit
