// How a product is cut into blocks that fit on the chip, and how many cycles that takes.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "src/device/simulator/profile.hpp"

namespace flywheel::inline v0::device::simulation {

/// y [rows, n] = x [rows, k] * w [n, k] transposed, as in plugin.h.
struct product {
  std::int64_t rows = 0, n = 0, k = 0;
  std::int32_t bits = 0;
  std::int32_t group = 0;

  /// Scales of a row of `depth` elements that begins with a group.
  [[nodiscard]] std::int64_t groups_in(std::int64_t depth) const noexcept {
    return group == 0 ? 1 : (depth + group - 1) / group;
  }
  [[nodiscard]] std::int64_t groups() const noexcept { return groups_in(k); }
};

/// Bounds that keep every size of this room within 64 bits.
inline constexpr std::int64_t max_rows = std::int64_t{1} << 16, max_n = std::int64_t{1} << 24, max_k = 131071;

[[nodiscard]] constexpr std::int64_t blocks_of(std::int64_t extent, std::int64_t block) noexcept {
  return (extent + block - 1) / block;
}
[[nodiscard]] constexpr std::int64_t rounded_up(std::int64_t extent, std::int64_t block) noexcept {
  return blocks_of(extent, block) * block;
}

/// What is multiplied in one step: m rows (whole tiles) by n channels (whole strips) over k elements (whole tiles and
/// groups). Steps go over k first, then over n, then over m.
struct blocking {
  std::int64_t m = 0, n = 0, k = 0;
  bool operator==(const blocking&) const = default;
};

/// The smallest blocking of a product.
[[nodiscard]] blocking smallest_blocking(const profile& p, const product& of) noexcept;
/// Whether it is made of whole tiles, strips and groups and no larger than the product needs.
[[nodiscard]] bool valid(const profile& p, const product& of, const blocking& b) noexcept;

/// Where a step's operands lie on the chip: twice, so that one half is filled while the other is multiplied.
struct scratch_layout {
  struct half {
    std::uint64_t weights = 0, weight_scales = 0, codes = 0, scales = 0;  ///< Offsets.
  };
  std::array<half, 2> halves;
  std::uint64_t sums = 0;     ///< int32 [m, n]
  std::uint64_t results = 0;  ///< f32 [m, n]
  std::uint64_t bytes = 0;    ///< All of it.
};
[[nodiscard]] scratch_layout lay_out(const profile& p, const product& of, const blocking& b) noexcept;

/// Of one product, without launch.
struct cost {
  std::uint64_t cycles = 0;   ///< From first to last.
  std::uint64_t compute = 0;  ///< The matrix unit was busy.
  std::uint64_t dma = 0;      ///< The DMA engine was busy.
  std::uint64_t dma_bytes = 0;
  std::uint64_t steps = 0;
  std::uint64_t multiply_adds = 0;       ///< rows * n * k
  std::uint64_t tile_multiply_adds = 0;  ///< The same in whole tiles.
};
[[nodiscard]] cost price(const profile& p, const product& of, const blocking& b) noexcept;

/// The blocking with the fewest cycles among those that fit into `scratch` bytes, the largest of equals; none if not
/// even the smallest one fits.
[[nodiscard]] std::optional<blocking> plan(const profile& p, const product& of, std::uint64_t scratch) noexcept;

/// Bytes of `k` elements (whole tiles) of a strip's codes.
[[nodiscard]] std::uint64_t code_bytes(const profile& p, std::int32_t bits, std::int64_t k) noexcept;

}  // namespace flywheel::inline v0::device::simulation
