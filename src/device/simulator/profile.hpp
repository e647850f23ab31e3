// What tells one simulated NPU from another: sizes, speeds, formats. No constant of a device lies anywhere else.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "flywheel/core/config.hpp"
#include "flywheel/device/plugin.h"

namespace flywheel::inline v0::device::simulation {

/// How a tile of weights lies in memory; tiles.cpp says where each byte is.
enum class tile_order : std::uint8_t {
  quads,    ///< Four consecutive k of each channel side by side: what dot products of fours read.
  columns,  ///< Channels dealt to the columns of an array in turn, a small tile for each column.
};

/// Of the array of matrix units that one queue drives.
struct profile {
  std::string_view name, vendor, arch, driver;
  tile_order order;
  std::uint32_t tile_m, tile_n, tile_k;   ///< Of one column's unit.
  std::uint32_t columns;                  ///< That work on neighbouring channels at the same time.
  std::uint32_t multiply_adds_per_cycle;  ///< Of all columns, int8 or int4 weights.
  std::uint32_t fill_cycles;              ///< Loading one tile of weights into each column.
  std::uint32_t scale_lanes;              ///< Group sums scaled and added in f32 per cycle.
  std::uint32_t dma_setup_cycles;         ///< Per transfer.
  std::uint32_t dma_bytes_per_cycle;
  double clock_hz;
  double launch_seconds;
  std::uint64_t scratch_bytes;
  std::uint64_t memory_bytes;      ///< 0: the host's.
  std::uint64_t max_buffer_bytes;  ///< 0: no limit.
  std::uint32_t alignment;
  std::uint32_t queues;
  std::uint32_t max_in_flight;  ///< At most max_submissions.
  bool unified_memory;
  std::span<const flywheel_weight_format> formats;

  /// Channels that are packed and computed together: a tile for each column.
  [[nodiscard]] std::uint32_t strip() const noexcept { return tile_n * columns; }
  [[nodiscard]] std::uint64_t launch_cycles() const noexcept {
    return static_cast<std::uint64_t>(launch_seconds * clock_hz);
  }
};

inline constexpr std::uint32_t max_submissions = 64;  ///< Bits of a set of submissions.
inline constexpr std::uint32_t max_queues = 4;

[[nodiscard]] std::span<const profile> profiles() noexcept;

}  // namespace flywheel::inline v0::device::simulation
