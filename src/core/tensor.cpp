#include "flywheel/core/tensor.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0 {

namespace {

constexpr std::uint64_t largest = std::numeric_limits<std::int64_t>::max();

/// a * b, or nothing when the product does not fit 63 bits.
bool multiply(std::uint64_t& a, std::uint64_t b) noexcept {
  if (b != 0 && a > largest / b) return false;
  a *= b;
  return true;
}

std::string text(std::span<const std::int64_t> dims) {
  std::string out = "[";
  for (std::size_t i = 0; i < dims.size(); ++i) {
    if (i) out += ", ";
    out += std::to_string(dims[i]);
  }
  return out += "]";
}

}  // namespace

result<shape> shape::of(std::span<const std::int64_t> dims) {
  return detail::guarded([&]() -> result<shape> {
    if (dims.size() > max_rank)
      return error{
          errc::invalid_argument,
          "a tensor has at most " + std::to_string(max_rank) + " dimensions, not " + std::to_string(dims.size()),
          {}};
    shape s;
    // An extent of zero counts as one, so that no partial product (strides are such) overflows either.
    std::uint64_t product = 1;
    for (const std::int64_t d : dims) {
      if (d < 0) return error{errc::invalid_argument, "extents must not be negative", text(dims)};
      if (!multiply(product, std::max<std::uint64_t>(static_cast<std::uint64_t>(d), 1)))
        return error{errc::invalid_argument, "the number of elements does not fit 63 bits", text(dims)};
      s.dims_[s.rank_++] = d;
    }
    return s;
  });
}

std::string shape::to_string() const { return text(dims()); }

result<std::size_t> dense_bytes(dtype type, const shape& dims) {
  return detail::guarded([&]() -> result<std::size_t> {
    const dtype_info* row = info(type);
    if (!row)
      return error{errc::unsupported,
                   "tensor type " + std::to_string(static_cast<std::uint32_t>(type)) + " is not known to this version",
                   {}};
    if (dims.rank() == 0 && (row->block_elements != 1 || row->kind == dtype_kind::row))
      return error{errc::invalid_argument, "a scalar cannot be " + std::string(row->name), dims.to_string()};
    for (const std::int64_t d : dims.dims())
      if (d < 0) return error{errc::invalid_argument, "extents must not be negative", dims.to_string()};
    if (dims.cols() % row->block_elements != 0)
      return error{errc::invalid_argument,
                   "rows of " + std::string(row->name) + " must be a multiple of " +
                       std::to_string(row->block_elements) + " elements",
                   dims.to_string()};
    // An extent of zero counts as one, so that strides do not overflow either.
    bool empty = dims.cols() == 0;
    std::uint64_t bytes = static_cast<std::uint64_t>(dims.cols()) / row->block_elements;
    bool fits = multiply(bytes, row->block_bytes);
    bytes = std::max<std::uint64_t>(bytes, row->block_bytes) + row->header_bytes();
    for (std::size_t i = 0; i + 1 < dims.rank(); ++i) {
      empty = empty || dims[i] == 0;
      fits = fits && multiply(bytes, static_cast<std::uint64_t>(std::max<std::int64_t>(dims[i], 1)));
    }
    if (!fits || bytes > std::numeric_limits<std::size_t>::max())
      return error{errc::invalid_argument, "the tensor is too large for this system", dims.to_string()};
    return empty ? 0 : static_cast<std::size_t>(bytes);
  });
}

result<tensor> tensor::zeros(dtype type, const shape& dims) {
  FLYWHEEL_TRY(const std::size_t size, dense_bytes(type, dims));
  FLYWHEEL_TRY(buffer bytes, buffer::zeros(size));
  tensor t;
  t.type_ = type;
  t.dims_ = dims;
  t.bytes_ = std::move(bytes);
  return t;
}

result<tensor> tensor::adopt(dtype type, const shape& dims, buffer bytes) {
  FLYWHEEL_TRY(const std::size_t size, dense_bytes(type, dims));
  if (bytes.size() < size)
    return detail::guarded([&]() -> result<tensor> {
      return error{
          errc::invalid_argument,
          "the buffer holds " + std::to_string(bytes.size()) + " bytes, the tensor needs " + std::to_string(size),
          dims.to_string()};
    });
  tensor t;
  t.type_ = type;
  t.dims_ = dims;
  t.bytes_ = std::move(bytes);
  return t;
}

result<tensor> tensor::copy() const {
  FLYWHEEL_TRY(buffer bytes, buffer::allocate(bytes_.size()));
  if (bytes_.size() > 0) std::memcpy(bytes.mutable_data(), bytes_.data(), bytes_.size());
  tensor t;
  t.type_ = type_;
  t.dims_ = dims_;
  t.bytes_ = std::move(bytes);
  return t;
}

}  // namespace flywheel::inline v0
