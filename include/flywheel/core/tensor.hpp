// Shapes, strided views and owning tensors.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <type_traits>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/result.hpp"

namespace flywheel::inline v0 {

/// Extents of a tensor, outermost first (row-major: the last dimension is contiguous), at most max_rank of them.
/// A matrix of 8 rows with 512 columns is {8, 512}. GGUF files store the reverse order; the reader turns it round.
class shape {
 public:
  static constexpr std::size_t max_rank = 6;

  constexpr shape() = default;
  constexpr shape(std::initializer_list<std::int64_t> dims) {
    for (std::int64_t d : dims)
      if (rank_ < max_rank) dims_[rank_++] = d;
  }
  /// Checked construction: every extent >= 0, rank <= max_rank, product fits 63 bits.
  [[nodiscard]] static FLYWHEEL_API result<shape> of(std::span<const std::int64_t> dims);

  [[nodiscard]] constexpr std::size_t rank() const noexcept { return rank_; }
  [[nodiscard]] constexpr std::int64_t operator[](std::size_t i) const noexcept { return dims_[i]; }
  [[nodiscard]] constexpr std::span<const std::int64_t> dims() const noexcept { return {dims_.data(), rank_}; }
  /// Product of all extents; 1 for rank 0.
  [[nodiscard]] constexpr std::int64_t elements() const noexcept {
    std::int64_t n = 1;
    for (std::size_t i = 0; i < rank_; ++i) n *= dims_[i];
    return n;
  }
  /// The contiguous extent (columns); 1 for rank 0.
  [[nodiscard]] constexpr std::int64_t cols() const noexcept { return rank_ ? dims_[rank_ - 1] : 1; }
  /// elements() / cols(): how many contiguous rows there are; 0 when cols() is 0.
  [[nodiscard]] constexpr std::int64_t rows() const noexcept { return cols() ? elements() / cols() : 0; }
  friend constexpr bool operator==(const shape& a, const shape& b) noexcept {
    if (a.rank_ != b.rank_) return false;
    for (std::size_t i = 0; i < a.rank_; ++i)
      if (a.dims_[i] != b.dims_[i]) return false;
    return true;
  }
  /// "[8, 512]".
  [[nodiscard]] FLYWHEEL_API std::string to_string() const;

 private:
  std::array<std::int64_t, max_rank> dims_{};
  std::uint8_t rank_ = 0;
};

/// Bytes of a dense tensor; an error for an unknown dtype, a row that is not a whole number of blocks, or overflow.
[[nodiscard]] FLYWHEEL_API result<std::size_t> dense_bytes(dtype type, const shape& dims);

/// Bytes of one row of `cols` elements (whole blocks; the caller has checked that). 0 for an unknown dtype.
[[nodiscard]] constexpr std::size_t row_bytes(dtype type, std::int64_t cols) noexcept {
  const dtype_info* row = info(type);
  return row ? row->header_bytes() + static_cast<std::size_t>(cols) / row->block_elements * row->block_bytes : 0;
}

/// A non-owning strided view of a tensor. Byte is `const std::byte` (tensor_view) or `std::byte`
/// (mutable_tensor_view). The last dimension is contiguous; strides of the others are in bytes.
template <class Byte>
struct basic_tensor_view {
  dtype type = dtype::f32;
  flywheel::shape dims;
  std::array<std::int64_t, shape::max_rank> strides{};  ///< Bytes per step; strides[rank-1] is one block's bytes.
  Byte* data = nullptr;

  basic_tensor_view() = default;
  /// A dense view; the caller has checked that `bytes` holds the whole of it.
  basic_tensor_view(dtype t, const flywheel::shape& s, Byte* bytes) : type(t), dims(s), data(bytes) {
    if (s.rank() == 0) return;
    const dtype_info* row = info(t);
    strides[s.rank() - 1] = row ? row->block_bytes : 1;
    std::int64_t step = static_cast<std::int64_t>(row_bytes(t, s.cols()));
    for (std::size_t i = s.rank() - 1; i-- > 0;) {
      strides[i] = step;
      step *= s[i];
    }
  }
  /// A writable view reads.
  operator basic_tensor_view<const std::byte>() const noexcept requires(!std::is_const_v<Byte>) {
    basic_tensor_view<const std::byte> view;
    view.type = type;
    view.dims = dims;
    view.strides = strides;
    view.data = data;
    return view;
  }

  [[nodiscard]] bool dense() const noexcept {
    const basic_tensor_view packed(type, dims, data);
    return packed.strides == strides;
  }
  /// Row `r` counted over all outer dimensions of a dense view.
  [[nodiscard]] Byte* row(std::int64_t r) const noexcept {
    return data + static_cast<std::size_t>(r) * row_bytes(type, dims.cols());
  }
  /// The data as T; dense views only. No check that T matches the dtype.
  template <class T>
  [[nodiscard]] auto as() const noexcept {
    using U = std::conditional_t<std::is_const_v<Byte>, const T, T>;
    return std::span<U>(reinterpret_cast<U*>(data), static_cast<std::size_t>(dims.elements()));
  }
};

using tensor_view = basic_tensor_view<const std::byte>;
using mutable_tensor_view = basic_tensor_view<std::byte>;

/// An owning dense tensor: a shape over a buffer. Movable, not copyable (use copy()).
class tensor {
 public:
  tensor() = default;
  /// Zero-filled. Errors: unknown dtype, partial blocks, overflow, out of memory.
  [[nodiscard]] static FLYWHEEL_API result<tensor> zeros(dtype type, const shape& dims);
  /// Takes over `bytes`, which must be large enough.
  [[nodiscard]] static FLYWHEEL_API result<tensor> adopt(dtype type, const shape& dims, buffer bytes);
  [[nodiscard]] FLYWHEEL_API result<tensor> copy() const;

  [[nodiscard]] tensor_view view() const noexcept { return {type_, dims_, bytes_.data()}; }
  [[nodiscard]] mutable_tensor_view view() noexcept { return {type_, dims_, bytes_.mutable_data()}; }
  [[nodiscard]] dtype type() const noexcept { return type_; }
  [[nodiscard]] const shape& dims() const noexcept { return dims_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_.size(); }

 private:
  dtype type_ = dtype::f32;
  shape dims_;
  buffer bytes_;
};

}  // namespace flywheel::inline v0
