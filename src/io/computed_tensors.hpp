// Tensors that are computed when they are read, a few rows at a time: of a model nothing is kept in memory but, until
// it is released, at most one matrix of a tensor that cannot be computed by rows. Reading is thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::io {

/// Rows of a tensor, all outer dimensions counted as one.
class computed_tensor {
 public:
  virtual ~computed_tensor() = default;
  /// Writes `count` rows from `first` on, each row_bytes(type, cols) long.
  [[nodiscard]] virtual result<void> rows(std::int64_t first, std::int64_t count, std::byte* out) const = 0;
  /// What it reads, and keeps of that, is not needed again soon.
  virtual void release() const noexcept {}
};

/// Given f32 values, one row.
[[nodiscard]] std::unique_ptr<computed_tensor> make_constant(std::vector<float> values);

/// The bytes of computed tensors, one after the other.
class computed_source final : public byte_source {
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

}  // namespace flywheel::inline v0::io
