#include "device_conformance/probe.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "src/device/status.hpp"

namespace flywheel::kit {
namespace {

using clock = std::chrono::steady_clock;

flywheel_status take_bytes(void* context, const void* data, std::uint64_t bytes) {
  auto& blob = *static_cast<std::vector<std::byte>*>(context);
  const auto* first = static_cast<const std::byte*>(data);
  blob.insert(blob.end(), first, first + bytes);
  return FLYWHEEL_OK;
}

std::string seconds_text(double seconds) {
  std::string text = std::to_string(seconds);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text + " s";
}

}  // namespace

std::string name_of(flywheel_status status) {
  return "'" + std::string(device::to_string_of_status(status)) + "' (" + std::to_string(status) + ")";
}

probe::probe(const flywheel_device_table& table, trace& trace, double timeout)
    : table_(table), trace_(trace), timeout_(timeout) {}

probe::~probe() {
  if (table_.close != nullptr) call("close", table_.close);
}

const flywheel_device_caps& probe::caps() {
  if (caps_.size == 0) {
    flywheel_device_caps read = {};
    read.size = sizeof read;
    require(call("caps", table_.caps, &read), "caps");
    caps_ = read;
    caps_.size = sizeof caps_;
  }
  return caps_;
}

flywheel_status probe::query(const flywheel_matmul& op, flywheel_support& out) {
  out = {};
  out.size = sizeof out;
  const flywheel_status status = call("query", table_.query, &op, &out);
  out.reason[sizeof out.reason - 1] = 0;
  return status;
}

std::vector<std::byte> probe::compile(std::span<const flywheel_matmul> ops, std::uint32_t n_inputs) {
  std::vector<std::byte> blob;
  const flywheel_part part = {sizeof part, static_cast<std::uint32_t>(ops.size()), ops.data(), n_inputs};
  const flywheel_sink sink = {&blob, take_bytes};
  require(call("compile", table_.compile, &part, &sink), "compile, of operations that query accepts,");
  if (blob.empty()) throw finding("compile wrote an empty blob and said ok");
  return blob;
}

flywheel_fence probe::submit(flywheel_executable* program, const flywheel_bindings& bindings,
                             std::span<const flywheel_fence> waits) {
  flywheel_fence fence = 0;
  // The fence is known before another thread can get the same one.
  const auto status = call("submit", table_.submit, program, &bindings, waits.empty() ? nullptr : waits.data(),
                           static_cast<std::uint32_t>(waits.size()), &fence);
  require(status, "submit");
  if (fence == 0) throw finding("submit said ok and gave the fence 0, which means none");
  const std::lock_guard lock(mutex_);
  if (!in_flight_.insert(fence).second)
    throw finding("fence lost: submit gave fence " + std::to_string(fence) +
                  " while an earlier submission with that fence has not been waited for");
  return fence;
}

void probe::forget(flywheel_fence fence) {
  const std::lock_guard lock(mutex_);
  in_flight_.erase(fence);
}

void probe::wait(flywheel_fence fence) {
  const clock::time_point end =
      clock::now() + std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(timeout_));
  const std::string name = "fence " + std::to_string(fence);
  {
    // Before the call: once it has returned, the device may give the number to another thread.
    const std::lock_guard lock(mutex_);
    in_flight_.erase(fence);
  }
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(end - clock::now()).count();
    const auto slice = static_cast<std::uint64_t>(std::clamp<std::int64_t>(left, 0, 500'000'000));
    const flywheel_status status = call("wait", table_.wait, fence, slice);
    if (status == FLYWHEEL_OK) return;
    if (status == FLYWHEEL_TIMEOUT) {
      if (left > 0) continue;
      throw hang(name + " was never signalled: wait timed out after " + seconds_text(timeout_));
    }
    if (status == FLYWHEEL_INVALID_ARGUMENT)
      throw finding("fence lost: wait does not know " + name + ", which submit gave and nobody waited for");
    require(status, "wait for " + name);
  }
}

void probe::require(flywheel_status status, const std::string& what) {
  if (status == FLYWHEEL_OK) return;
  std::string why;
  if (table_.last_error != nullptr) {
    char text[256] = {};
    call("last_error", table_.last_error, text, std::uint32_t{sizeof text});
    text[sizeof text - 1] = 0;
    if (text[0] != 0) why = std::string(": ") + text;
  }
  throw finding(what + " answered " + name_of(status) + why);
}

buffer::buffer(probe& device, std::uint64_t bytes) : device_(&device) {
  device.require(device.call("alloc", device.table().alloc, bytes, &handle_),
                 "alloc of " + std::to_string(bytes) + " bytes");
  if (handle_ == nullptr) throw finding("alloc said ok and gave no buffer");
}
buffer::buffer(buffer&& other) noexcept : device_(other.device_), handle_(std::exchange(other.handle_, nullptr)) {}
buffer::~buffer() {
  if (handle_ != nullptr) device_->call("release", device_->table().release, handle_);
}
std::byte* buffer::map(std::uint32_t access) {
  void* address = nullptr;
  device_->require(device_->call("map", device_->table().map, handle_, access, &address), "map");
  if (address == nullptr) throw finding("map said ok and gave a null address");
  return static_cast<std::byte*>(address);
}
void buffer::unmap() { device_->require(device_->call("unmap", device_->table().unmap, handle_), "unmap"); }

program::program(probe& device, std::span<const std::byte> blob) : device_(device) {
  device.require(device.load(blob, handle_), "load of a blob that compile has just made");
  if (handle_ == nullptr) throw finding("load said ok and gave no program");
}
program::~program() {
  if (handle_ != nullptr) device_.call("unload", device_.table().unload, handle_);
}

}  // namespace flywheel::kit
