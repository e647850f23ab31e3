// The device's layout of weights, and the matrix unit that reads it.
//
// Packed weights are strips of profile::strip() channels, the last one filled up with zeros. A strip is
//   codes   [tiles along k] [strip x tile_k elements, 8 or 4 bits], in the order of the profile
//   scales  f32 [groups] [strip]
// quads:   element (channel c, k i) of a tile is number i / 4 * 4 * strip + 4 * c + i % 4. With 4 bits, byte j holds
//          number j in its low half and number j + half a tile in its high half.
// columns: channel c belongs to column c % columns, where it is row c / columns; number = column * tile_n * tile_k +
//          row * tile_k + i. With 4 bits, byte j holds numbers 2 j and 2 j + 1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/result.hpp"
#include "src/device/simulator/cost.hpp"

namespace flywheel::inline v0::device::simulation {

[[nodiscard]] std::uint64_t strip_bytes(const profile& p, const product& of) noexcept;
[[nodiscard]] std::uint64_t packed_bytes(const profile& p, const product& of) noexcept;

/// `codes` [n, k], `scales` [n, groups], `out` packed_bytes(). False: a code is out of range.
[[nodiscard]] bool pack_weights(const profile& p, const product& of, const std::int8_t* codes, const float* scales,
                                std::byte* out) noexcept;
void unpack_weights(const profile& p, const product& of, const std::byte* packed, std::int8_t* codes,
                    float* scales) noexcept;

/// One queue's matrix unit with its on-chip memory, in which everything that it multiplies lies: the limit is real.
/// Used by one thread at a time.
class matrix_unit {
 public:
  /// `p` must outlive the unit. Error: out_of_memory.
  [[nodiscard]] static result<matrix_unit> create(const profile& p, std::uint64_t scratch_bytes);

  /// `codes` [rows, k], `scales` [rows, groups], `weights` as packed, `out` [rows, n]. The blocking fits into the
  /// scratch. Allocates nothing.
  void multiply(const product& of, const blocking& b, const std::byte* codes, const std::byte* scales,
                const std::byte* weights, std::byte* out) noexcept;

 private:
  struct step;
  void fetch(const step& s) noexcept;
  void accumulate(const step& s) noexcept;
  void store(const step& s, std::byte* out) noexcept;

  const profile* profile_ = nullptr;
  buffer scratch_;
  // Registers: a strip of weights and a tile of activations, widened to what they are multiplied in.
  std::vector<std::int16_t> weight_registers_, row_registers_;
};

}  // namespace flywheel::inline v0::device::simulation
