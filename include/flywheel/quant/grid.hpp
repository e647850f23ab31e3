// Scalar formats seen as grids: which values a group of numbers can take once its scale is fixed. Rounding with error
// feedback (gptq.hpp) fixes the grid of a block first, then rounds its columns one by one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "flywheel/core/config.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/quant/recipe.hpp"

namespace flywheel::inline v0::quant {

/// The grid of one stored block: value = scale * level[code] - minimum, exactly as the decoder computes it, per group.
struct block_grid {
  static constexpr int max_groups = 16;
  std::array<float, max_groups> scale{};
  std::array<float, max_groups> minimum{};
  std::array<std::uint8_t, 48> stored{};  ///< The format's own fields (d, dmin, packed scales), as pack() wants them.
};

/// A format whose values are scale * level[code] - minimum with a scale and a minimum per group of neighbours.
struct grid_format {
  dtype type = dtype::q4_0;
  int block = 32;                 ///< Values stored together; 0: the whole row (dtypes of kind row), one group.
  int group = 32;                 ///< Values under one scale; 0: the whole row.
  std::span<const float> levels;  ///< [codes], static; not always ascending (FP4 has the sign last).
  bool minima = false;            ///< Whether minimum can be other than 0.
  // Both functions are thread-safe, allocate nothing and cannot fail.
  /// Chooses the grid of the n = block (or row) finite values of x for these weights [n], finite and not negative
  /// (null: all alike).
  void (*fit)(const float* x, const float* weights, std::int64_t n, rounding method, block_grid& grid) = nullptr;
  /// Stores codes [n] on that grid; out has the bytes of a block (or of a whole row).
  void (*pack)(const block_grid& grid, const std::uint8_t* codes, std::int64_t n, std::byte* out) = nullptr;
};

/// One of the library's own constants; null for formats that are none: plain numbers, and codebooks of vectors (IQ1,
/// IQ2, IQ3). Thread-safe.
[[nodiscard]] FLYWHEEL_API const grid_format* find_grid(dtype type) noexcept;

}  // namespace flywheel::inline v0::quant
