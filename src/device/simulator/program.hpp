// What a simulated NPU runs, and the blob it is kept as.
//
// A blob, little-endian:
//   u8[8] magic   u64 bytes of the whole blob   u32 version   u32 inputs   u32 operations
//   u32 bytes of the fingerprint, which follows
//   of each operation: u32 rows, n, k, bits, group, input; u32 m, n, k of its blocks; u64 steps
//   u64 checksum  XXH64 of everything before
// Magic, length and checksum stay where they are in every version, so that a blob of another version is told from a
// damaged one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/result.hpp"
#include "flywheel/device/plugin.h"
#include "src/device/simulator/cost.hpp"

namespace flywheel::inline v0::device::simulation {

inline constexpr std::uint32_t max_ops = 64;     ///< Of a program.
inline constexpr std::uint32_t max_inputs = 64;  ///< Of a program.

struct operation {
  product of;
  std::uint32_t input = 0;
  blocking blocks;
  cost price;
};

struct program {
  std::uint32_t n_inputs = 0;
  std::vector<operation> ops;
};

/// A chip: a profile and what there is of on-chip memory.
struct chip {
  const profile* kind = nullptr;
  std::uint64_t scratch_bytes = 0;

  [[nodiscard]] std::string fingerprint() const;
};

/// Why a device does not do something, with the status that plugin.h has for it.
struct refusal {
  flywheel_status status = FLYWHEEL_OK;  ///< OK: it does.
  std::string reason;
};

/// Whether the chip multiplies this, for any number of rows if 0. `blocks` receives the plan for max(rows, 1) rows.
[[nodiscard]] refusal examine(const chip& on, const product& of, blocking& blocks);

/// Plans the operations. Their products have been examined only by type.
[[nodiscard]] refusal assemble(const chip& on, std::span<const operation> wanted, std::uint32_t n_inputs, program& out);

[[nodiscard]] std::vector<std::byte> to_blob(const chip& on, const program& what);
/// FLYWHEEL_CORRUPT or FLYWHEEL_INCOMPATIBLE for what this chip should not run. Any bytes are safe.
[[nodiscard]] refusal from_blob(const chip& on, std::span<const std::byte> blob, program& out);

}  // namespace flywheel::inline v0::device::simulation
