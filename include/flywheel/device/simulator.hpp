// Simulated NPUs: devices without hardware, to develop against. They compute exact results in the way an NPU would,
// count cycles, and fail on request. Simulated time is never this machine's speed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "flywheel/core/config.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/device/plugin.h"

namespace flywheel::inline v0::device {

/// What a simulated NPU did since it was opened. Thread-safe to read at any time.
struct simulator_report {
  std::uint64_t cycles = 0;          ///< Until the last submission ended.
  std::uint64_t compute_cycles = 0;  ///< The matrix unit was busy.
  std::uint64_t dma_cycles = 0;      ///< The DMA engine was busy.
  std::uint64_t launch_cycles = 0;
  std::uint64_t multiply_adds = 0;  ///< Wanted, without padding to tiles.
  std::uint64_t tile_multiply_adds = 0;
  std::uint64_t submissions = 0;
  std::uint64_t compilations = 0, loads = 0;
  std::uint64_t allocations = 0, imports = 0, releases = 0;
  std::uint64_t buffers = 0, executables = 0, fences = 0;  ///< Alive now.
  std::uint64_t bytes_alive = 0;
  std::uint64_t bytes_to_device = 0, bytes_from_device = 0;  ///< Copied by unmap and map: 0 with unified memory.
  std::uint64_t faults = 0;                                  ///< Injected so far.
  double clock_hz = 0;
  /// multiply_adds / (what the matrix unit could do in `cycles`), 0..1.
  double utilisation = 0;
};

class FLYWHEEL_API simulated_npu {
 public:
  /// Profiles: "hexagon-sim" and "xdna-sim". `options`: "key=value,..." or empty, errors name the key:
  ///   seed=N            of delays and faults (default 1)
  ///   delay_us=N        submissions end out of order, up to so much later (default 0)
  ///   faults=KIND[+KIND...]   stale_fingerprint, truncated_blob, out_of_memory, timeout, failed, device_lost, or all
  ///   fault_rate=P      probability per opportunity, 0..1 (default 0.01 when faults are given)
  ///   scratch=BYTES     another limit of on-chip memory
  [[nodiscard]] static result<std::shared_ptr<simulated_npu>> create(std::string_view profile,
                                                                     std::string_view options = {});
  virtual ~simulated_npu();

  /// The device for make_accelerator or a test. May be called any number of times: all are the same device, which lives
  /// until each was closed and this object is gone.
  [[nodiscard]] virtual flywheel_device_table table() = 0;
  [[nodiscard]] virtual simulator_report report() const = 0;
  /// The report as a table for people.
  [[nodiscard]] virtual std::string describe() const = 0;
  /// Keeps events from now on, at most `limit`, for write_trace.
  virtual void start_trace(std::uint64_t limit = 1'000'000) = 0;
  /// Chrome's trace format (chrome://tracing, ui.perfetto.dev): a lane for DMA, one for the matrix unit of each queue,
  /// one for the host, which is what passes between submissions and waiting. Written under a temporary name, then
  /// renamed.
  [[nodiscard]] virtual result<void> write_trace(const std::filesystem::path& file) const = 0;
  /// From now on the device is lost. For tests.
  virtual void lose() = 0;
};

}  // namespace flywheel::inline v0::device
