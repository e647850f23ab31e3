// Tensors that are computed from the folder's when they are read, a few rows at a time: nothing of the model is kept in
// memory. Reading is thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::hugging_face {

/// Rows of a tensor, all outer dimensions counted as one.
class computed_tensor {
 public:
  virtual ~computed_tensor() = default;
  /// Writes `count` rows from `first` on, each row_bytes(type, cols) long.
  [[nodiscard]] virtual result<void> rows(std::int64_t first, std::int64_t count, std::byte* out) const = 0;
  /// What it reads is not needed again soon.
  virtual void release() const noexcept {}
};

/// Rows picked from tensors of one type and shape that lie one after the other (experts), then changed.
struct gathered_rows {
  std::vector<io::tensor_info> from;
  std::int64_t cols = 0;  ///< Elements that make a row, in the sources and in the result.
  /// Which row of the sources is row r of the result, and which element is element c; empty: the same one.
  std::function<std::int64_t(std::int64_t r)> row = {}, column = {};
  float (*value)(float) = nullptr;  ///< Applied to every element; null: none.
};

/// `type` differs from the sources' only for f32. Rows and columns that `row` and `column` name must exist.
[[nodiscard]] std::unique_ptr<computed_tensor> make_gathered(io::archive base, gathered_rows what, dtype type);

/// [experts, in, out] as [experts, count, in]: matrix element [i, start + r * step] becomes [r, i].
struct transposed_experts {
  io::tensor_info from;
  std::int64_t start = 0, step = 1, count = 0;
};
[[nodiscard]] std::unique_ptr<computed_tensor> make_transposed(io::archive base, transposed_experts what);

/// MXFP4 as two tensors: blocks [experts, n, k / 32, 16] of pairs (2j in the low nibble of byte j, 2j + 1 in the high
/// one) and scales [experts, n, k / 32], E8M0. Row r of each expert's result is row start + r * step of its n.
struct mxfp4_experts {
  io::tensor_info blocks, scales;
  std::int64_t start = 0, step = 1, count = 0;
};
[[nodiscard]] std::unique_ptr<computed_tensor> make_mxfp4(io::archive base, mxfp4_experts what);

/// Given f32 values, one row.
[[nodiscard]] std::unique_ptr<computed_tensor> make_constant(std::vector<float> values);

/// The bytes of computed tensors, one after the other.
class computed_source final : public io::byte_source {
 public:
  /// Takes a tensor of `rows` rows of `row_bytes` and returns where it begins. Not thread-safe, unlike reading.
  [[nodiscard]] std::uint64_t add(std::unique_ptr<computed_tensor> tensor, std::int64_t rows, std::size_t row_bytes);

  [[nodiscard]] std::uint64_t size() const noexcept override { return size_; }
  [[nodiscard]] result<void> read(std::uint64_t offset, std::span<std::byte> out) const override;
  void release(std::uint64_t offset, std::uint64_t length) const noexcept override;

 private:
  struct entry {
    std::uint64_t offset = 0, bytes = 0;
    std::size_t row_bytes = 0;
    std::unique_ptr<computed_tensor> tensor;
  };
  /// The entry with this byte, or the end.
  [[nodiscard]] std::vector<entry>::const_iterator find(std::uint64_t offset) const noexcept;
  std::vector<entry> entries_;
  std::uint64_t size_ = 0;
};

}  // namespace flywheel::inline v0::hugging_face
