// Tensors that are computed from the folder's when they are read (src/io/computed_tensors.hpp).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "flywheel/io/archive.hpp"
#include "src/io/computed_tensors.hpp"

namespace flywheel::inline v0::hugging_face {

/// Rows picked from tensors of one type and shape that lie one after the other (experts), then changed.
struct gathered_rows {
  std::vector<io::tensor_info> from;
  std::int64_t cols = 0;  ///< Elements that make a row, in the sources and in the result.
  /// Which row of the sources is row r of the result, and which element is element c; empty: the same one.
  std::function<std::int64_t(std::int64_t r)> row = {}, column = {};
  /// Applied to every element, and what takes it back; empty: none.
  std::function<float(float)> value = {}, inverse = {};
};

/// `type` differs from the sources' only for f32. Rows and columns that `row` and `column` name must exist.
[[nodiscard]] std::unique_ptr<io::computed_tensor> make_gathered(io::archive base, gathered_rows what, dtype type);

/// [experts, in, out] as [experts, count, in]: matrix element [i, start + r * step] becomes [r, i].
struct transposed_experts {
  io::tensor_info from;
  std::int64_t start = 0, step = 1, count = 0;
};
[[nodiscard]] std::unique_ptr<io::computed_tensor> make_transposed(io::archive base, transposed_experts what);

/// MXFP4 as two tensors: blocks [experts, n, k / 32, 16] of pairs (2j in the low nibble of byte j, 2j + 1 in the high
/// one) and scales [experts, n, k / 32], E8M0. Row r of each expert's result is row start + r * step of its n.
struct mxfp4_experts {
  io::tensor_info blocks, scales;
  std::int64_t start = 0, step = 1, count = 0;
};
[[nodiscard]] std::unique_ptr<io::computed_tensor> make_mxfp4(io::archive base, mxfp4_experts what);

}  // namespace flywheel::inline v0::hugging_face
