// Rows of a stored tensor as f32, a few at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "flywheel/core/context.hpp"
#include "flywheel/io/archive.hpp"
#include "kernels/convert/convert.hpp"

namespace flywheel::inline v0::detail {

/// Refers to the archive and the tensor, which must outlive it. Thread-safe.
class row_reader {
 public:
  /// Memory of one worker.
  struct scratch {
    std::vector<std::byte> stored;
    std::vector<float> values;
  };
  /// Error: unsupported (a type without decoder), naming the tensor.
  [[nodiscard]] static result<row_reader> create(const io::archive& from, const io::tensor_info& tensor,
                                                 const context& ctx);
  /// Rows first .. first+count-1 [count, cols], in `own`. Errors: those of archive::read.
  [[nodiscard]] result<std::span<const float>> read(std::int64_t first, std::int64_t count, scratch& own) const;
  /// How many rows a worker takes at a time: about 256 KiB of f32, which stay in L2.
  [[nodiscard]] std::int64_t rows_at_once() const noexcept;

 private:
  row_reader(const io::archive& from, const io::tensor_info& tensor) noexcept : from_(&from), tensor_(&tensor) {}

  const io::archive* from_;
  const io::tensor_info* tensor_;
  std::span<const std::byte> mapped_;
  kernels::to_f32_fn decode_ = nullptr;
};

}  // namespace flywheel::inline v0::detail
