// Blobs of simulated NPUs. The first byte says which device and whether length and checksum are put right, so that what
// lies behind those checks is reached, too. What is accepted is run.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "flywheel/device/simulator.hpp"
#include "src/core/checksum.hpp"

namespace {

using namespace flywheel;

void require(bool holds) {
  if (!holds) std::abort();
}

struct opened {
  explicit opened(const char* profile) : npu(device::simulated_npu::create(profile).value()), t(npu->table()) {}
  ~opened() { t.close(t.self); }
  opened(const opened&) = delete;
  opened& operator=(const opened&) = delete;
  std::shared_ptr<device::simulated_npu> npu;
  flywheel_device_table t;
};

/// A program that was accepted has buffers of its sizes, or says which it has not.
void run(const opened& d, flywheel_executable* executable) {
  constexpr std::uint64_t bytes = 1U << 16;
  flywheel_buffer *in = nullptr, *out = nullptr;
  require(d.t.alloc(d.t.self, bytes, &in) == FLYWHEEL_OK);
  require(d.t.alloc(d.t.self, bytes, &out) == FLYWHEEL_OK);
  const flywheel_input input{{in, 0}, {in, 0}};
  const flywheel_region weights{in, 0}, output{out, 0};
  const flywheel_bindings b{sizeof b, 1, 1, &input, &weights, &output};
  flywheel_fence fence = 0;
  const flywheel_status status = d.t.submit(d.t.self, executable, &b, nullptr, 0, &fence);
  require(status == FLYWHEEL_OK || status == FLYWHEEL_INVALID_ARGUMENT);
  if (status == FLYWHEEL_OK) require(d.t.wait(d.t.self, fence, ~std::uint64_t{0}) == FLYWHEEL_OK);
  d.t.release(d.t.self, in);
  d.t.release(d.t.self, out);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const opened devices[] = {opened("hexagon-sim"), opened("xdna-sim")};
  if (size == 0) return 0;
  const unsigned how = data[0];
  std::vector<std::uint8_t> blob(data + 1, data + size);
  if ((how & 2U) != 0 && blob.size() >= 24) {
    const std::uint64_t length = blob.size();
    for (std::size_t i = 0; i < 8; ++i) blob[8 + i] = static_cast<std::uint8_t>(length >> (8 * i));
    detail::checksum sum;
    sum.add(std::as_bytes(std::span(blob).first(blob.size() - 8)));
    const std::uint64_t value = sum.value();
    for (std::size_t i = 0; i < 8; ++i) blob[blob.size() - 8 + i] = static_cast<std::uint8_t>(value >> (8 * i));
  }
  const opened& d = devices[how & 1U];
  flywheel_executable* executable = nullptr;
  const std::uint8_t none = 0;
  const flywheel_status status = d.t.load(d.t.self, blob.empty() ? &none : blob.data(), blob.size(), &executable);
  require(status == FLYWHEEL_OK || status == FLYWHEEL_CORRUPT || status == FLYWHEEL_INCOMPATIBLE);
  if (status != FLYWHEEL_OK) return 0;
  run(d, executable);
  d.t.unload(d.t.self, executable);
  return 0;
}
