#include "src/quant/tensor_rounder.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "flywheel/detail/try.hpp"
#include "flywheel/quant/quantize.hpp"

namespace flywheel::inline v0::quant {

tensor_rounder::tensor_rounder(const io::tensor_info& tensor, dtype type, rounding how,
                               std::span<const float> importance, const context& ctx) noexcept
    : tensor_(tensor), how_{type, how, importance}, ctx_(ctx) {
  const auto dims = tensor.dims.dims();
  rows_per_matrix_ = dims.size() > 2 ? dims[dims.size() - 2] : tensor.dims.rows();
}

result<void> tensor_rounder::check() const {
  const auto size = static_cast<std::int64_t>(how_.importance.size());
  const std::int64_t cols = tensor_.dims.cols(), matrices = tensor_.dims.rows() / rows_per_matrix_;
  if (size != 0 && size != cols && size != matrices * cols)
    return error{errc::invalid_argument,
                 "its importance has " + std::to_string(size) + " numbers, but the shape is " +
                     tensor_.dims.to_string() + ": it belongs to another model",
                 "tensor '" + tensor_.name + "'"};
  for (std::size_t i = 0; i < how_.importance.size(); ++i)
    if (!std::isfinite(how_.importance[i]) || how_.importance[i] < 0)
      return error{errc::invalid_argument, "its importance is negative or not finite at " + std::to_string(i),
                   "tensor '" + tensor_.name + "'"};
  return {};
}

result<void> tensor_rounder::operator()(std::span<const float> rows, std::int64_t first,
                                        std::span<std::byte> stored) const {
  const std::int64_t cols = tensor_.dims.cols();
  const auto width = static_cast<std::size_t>(cols);
  const std::size_t bytes = row_bytes(how_.type, cols);
  while (!rows.empty()) {
    const std::int64_t matrix = first / rows_per_matrix_;
    const std::size_t n =
        std::min(rows.size() / width, static_cast<std::size_t>((matrix + 1) * rows_per_matrix_ - first));
    recipe part = how_;
    if (part.importance.size() > width)
      part.importance = part.importance.subspan(static_cast<std::size_t>(matrix) * width, width);
    auto done = quantize_rows(rows.first(n * width), cols, first, part, stored.first(n * bytes), ctx_);
    if (!done) return error{done.error().code, done.error().message, "tensor '" + tensor_.name + "'"};
    rows = rows.subspan(n * width);
    stored = stored.subspan(n * bytes);
    first += static_cast<std::int64_t>(n);
  }
  return {};
}

}  // namespace flywheel::inline v0::quant
