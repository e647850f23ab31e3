// Buffers: alloc, import_host, map, unmap, release.
#include <algorithm>
#include <cstdlib>
#include <memory>

#include "device_conformance/check.hpp"

namespace flywheel::kit {
namespace {

std::byte pattern(std::size_t i, unsigned which) {
  return static_cast<std::byte>((i * 2654435761U + which * 40503U) >> 11 & 255);
}

void write_pattern(std::byte* to, std::size_t bytes, unsigned which) {
  for (std::size_t i = 0; i < bytes; ++i) to[i] = pattern(i, which);
}
void expect_pattern(const std::byte* at, std::size_t bytes, unsigned which, const std::string& when) {
  for (std::size_t i = 0; i < bytes; ++i)
    expect(at[i] == pattern(i, which),
           "a buffer of " + std::to_string(bytes) + " bytes lost byte " + std::to_string(i) + " " + when);
}

void check_alignment(bench& b) {
  probe& d = b.device();
  const std::uint32_t alignment = d.caps().alignment;
  std::vector<buffer> held;
  held.reserve(16);
  for (const std::uint64_t bytes : {1ULL, 7ULL, 64ULL, 4096ULL, 65537ULL, (1ULL << 20) + 3}) {
    held.emplace_back(d, bytes);
    const auto address = reinterpret_cast<std::uintptr_t>(held.back().map());
    held.back().unmap();
    expect(address % alignment == 0, "map of a buffer of " + std::to_string(bytes) + " bytes is not aligned to the " +
                                         std::to_string(alignment) + " bytes of caps.alignment");
  }
}

void check_contents(bench& b) {
  probe& d = b.device();
  const std::size_t sizes[] = {1, 100, 4096, 70000, 1 << 20};
  std::vector<buffer> held;
  held.reserve(std::size(sizes));
  for (const std::size_t bytes : sizes) {
    held.emplace_back(d, bytes);
    write_pattern(held.back().map(FLYWHEEL_MAP_WRITE), bytes, static_cast<unsigned>(held.size()));
    held.back().unmap();
  }
  for (int round = 0; round < 2; ++round)
    for (std::size_t i = 0; i < held.size(); ++i) {
      expect_pattern(held[i].map(FLYWHEEL_MAP_READ), sizes[i], static_cast<unsigned>(i + 1), "between unmap and map");
      held[i].unmap();
    }
}

void check_import(bench& b) {
  probe& d = b.device();
  if (d.caps().unified_memory == 0) throw not_applicable("caps.unified_memory is 0");
  expect(d.table().import_host != nullptr, "caps.unified_memory is 1, but import_host is null");
  const std::size_t bytes = 3 * 4096;
  const std::unique_ptr<std::byte, decltype(&std::free)> memory(
      static_cast<std::byte*>(std::aligned_alloc(4096, bytes)), std::free);
  expect(memory != nullptr, "the host has no memory for the check");
  write_pattern(memory.get(), bytes, 9);
  flywheel_buffer* imported = nullptr;
  d.require(
      d.call("import_host", d.table().import_host, static_cast<void*>(memory.get()), std::uint64_t{bytes}, &imported),
      "import_host");
  expect(imported != nullptr, "import_host said ok and gave no buffer");
  for (int round = 0; round < 2; ++round) {
    void* address = nullptr;
    d.require(d.call("map", d.table().map, imported, std::uint32_t{FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE}, &address),
              "map of imported memory");
    expect(address == memory.get(), "map of imported memory gave another address: it was copied");
    expect_pattern(memory.get(), bytes, 9, "after it was imported");
    d.require(d.call("unmap", d.table().unmap, imported), "unmap of imported memory");
  }
  d.call("release", d.table().release, imported);
  expect_pattern(memory.get(), bytes, 9, "when the imported buffer was released");
}

void check_huge(bench& b) {
  probe& d = b.device();
  for (const std::uint64_t bytes : {std::uint64_t{1} << 62, ~std::uint64_t{0}, ~std::uint64_t{0} - 4096}) {
    flywheel_buffer* made = nullptr;
    const flywheel_status status = d.call("alloc", d.table().alloc, bytes, &made);
    if (status == FLYWHEEL_OK && made != nullptr) d.call("release", d.table().release, made);
    // Beyond caps.max_buffer_bytes, it is the caller who is wrong.
    if (status == FLYWHEEL_INVALID_ARGUMENT && d.caps().max_buffer_bytes != 0) continue;
    expect(status == FLYWHEEL_OUT_OF_MEMORY,
           "alloc of " + std::to_string(bytes) + " bytes answered " + name_of(status) + "; it must be 'out of memory'");
  }
  buffer small(d, 4096);  // and goes on
  (void)small.map();
  small.unmap();
}

void check_release(bench& b) {
  probe& d = b.device();
  const std::uint64_t bytes = 1 << 20;
  // More than the device has, one after the other: what release() does not give back is missed.
  const std::uint64_t least = b.options().quick ? 200 : 2000;
  const std::uint64_t count = std::clamp<std::uint64_t>(d.caps().memory_bytes / bytes * 2, least, 20000);
  for (std::uint64_t i = 0; i < count; ++i) {
    buffer one(d, bytes);
    if (i % 16 != 0) continue;
    one.map()[bytes - 1] = std::byte{1};
    one.unmap();
  }
  b.note = std::to_string(count) + " buffers of 1 MiB, one at a time";
}

constexpr check memory_list[] = {
    {"memory", "memory.alignment", "mapped buffers are aligned", true, check_alignment},
    {"memory", "memory.contents", "contents survive unmap and map", true, check_contents},
    {"memory", "memory.import", "the host's memory is used without a copy", true, check_import},
    {"memory", "memory.huge", "what does not fit is refused", true, check_huge},
    {"memory", "memory.release", "released memory is there again", true, check_release},
};

}  // namespace

std::span<const check> memory_checks() { return memory_list; }

}  // namespace flywheel::kit
