// Rows of one tensor, rounded by its recipe.
#pragma once

#include <span>
#include <vector>

#include "flywheel/core/context.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/quant/recipe.hpp"

namespace flywheel::inline v0::quant {

/// Refers to its arguments, which must outlive it. Thread-safe.
class tensor_rounder {
 public:
  /// `importance`: [cols], [matrices, cols] or empty. `ctx` must not run in parallel where the caller does.
  tensor_rounder(const io::tensor_info& tensor, dtype type, rounding how, std::span<const float> importance,
                 const context& ctx) noexcept;
  /// Error: invalid_argument (importance of another size, not finite or negative), naming the tensor.
  [[nodiscard]] result<void> check() const;
  /// Rows `first` .. of the tensor, which may be of several matrices. Errors: those of quantize_rows, naming the
  /// tensor.
  [[nodiscard]] result<void> operator()(std::span<const float> rows, std::int64_t first,
                                        std::span<std::byte> stored) const;

 private:
  const io::tensor_info& tensor_;
  recipe how_;
  std::int64_t rows_per_matrix_ = 0;
  const context& ctx_;
};

}  // namespace flywheel::inline v0::quant
