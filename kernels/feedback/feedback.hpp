// Rounding a block of columns one after the other, where every column's rounding error moves the columns after it
// (GPTQ, and coordinate descent). Lanes are rows of the matrix: each row is a problem of its own with the same factors.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flywheel::inline v0::kernels {

/// The numbers a code can stand for, before scale and minimum, in ascending order.
struct level_table {
  std::int32_t count = 0;
  float first = 0;                   ///< The lowest level, and
  float step = 0;                    ///< the distance of neighbours; 0: levels are uneven,
  const float* middles = nullptr;    ///< [count - 1]: then here is the middle between each and the next,
  const float* distances = nullptr;  ///< [count - 1]: and how far the next is.
};

/// Matrices of columns by lanes have one column's lanes side by side.
struct feedback_args {
  std::int64_t lanes = 0;  ///< A multiple of the cluster's two vectors: the f32 product's panel_cols.
  std::int64_t columns = 0;
  const float* weights = nullptr;  ///< [columns, lanes]: w.
  const float* target = nullptr;   ///< [columns, lanes]: t, what would be rounded if these columns were exact.
  const float* factors = nullptr;  ///< Row j, `factor_stride` apart: f_ji for i < j.
  std::int64_t factor_stride = 0;
  const std::int32_t* group = nullptr;  ///< [columns]: which row of the three below is a column's.
  const float* scale = nullptr;         ///< [groups, lanes]: s,
  const float* inverse = nullptr;       ///< 1 / s, or 0 where s is 0,
  const float* minimum = nullptr;       ///< m.
  level_table levels;
  float* errors = nullptr;        ///< [columns, lanes]: e, in and out.
  float* change = nullptr;        ///< [columns, lanes], out: c.
  std::uint8_t* codes = nullptr;  ///< [columns, lanes], out: index of the level in ascending order.
};

/// For j = 0, 1, ..: the level l nearest to (t_j + sum_{i<j} f_ji c_i + m) / s, the error e_j = w_j - (s l - m), and
/// c_j = how much e_j changed.
using round_columns_fn = void (*)(const feedback_args& args);

}  // namespace flywheel::inline v0::kernels
