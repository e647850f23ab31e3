// Element types of tensors: plain numbers and block-quantized formats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0 {

/// What the elements of a tensor are. Values below 1000 equal GGUF's tensor type ids. A file may carry an id that is
/// not listed here; such a tensor is opaque (info() is null) and can be copied but not computed with.
enum class dtype : std::uint32_t {
#define FLYWHEEL_DTYPE(name, id, display, elements, bytes, kind) name = id,
#include "flywheel/core/dtypes.inc"
#undef FLYWHEEL_DTYPE
};

enum class dtype_kind : std::uint8_t {
  real,
  integer,
  block,  ///< Quantized, with scales in every block.
  row,    ///< Quantized, with one scale at the start of every row (see row_header_bytes).
};

/// Bytes before the first block of a row of kind `row`: its scale, f32, little-endian.
inline constexpr std::uint32_t row_header_bytes = 4;

/// Size facts of one dtype. A row of n elements takes header_bytes() + n / block_elements * block_bytes bytes.
struct dtype_info {
  dtype type;
  std::string_view name;         ///< Display name as in GGUF tools: "Q4_K".
  std::uint32_t block_elements;  ///< 1 for plain numbers.
  std::uint32_t block_bytes;
  dtype_kind kind;

  [[nodiscard]] constexpr std::uint32_t header_bytes() const noexcept {
    return kind == dtype_kind::row ? row_header_bytes : 0;
  }
};

inline constexpr dtype_info dtype_table[] = {
#define FLYWHEEL_DTYPE(name, id, display, elements, bytes, kind) \
  {dtype::name, display, elements, bytes, dtype_kind::kind},
#include "flywheel/core/dtypes.inc"
#undef FLYWHEEL_DTYPE
};

/// Facts about `type`, or null when this version does not know it.
[[nodiscard]] constexpr const dtype_info* info(dtype type) noexcept {
  for (const dtype_info& row : dtype_table)
    if (row.type == type) return &row;
  return nullptr;
}

/// Display name, "unknown" when this version does not know it.
[[nodiscard]] constexpr std::string_view to_string(dtype type) noexcept {
  const dtype_info* row = info(type);
  return row ? row->name : std::string_view("unknown");
}

/// The dtype of a display name, upper or lower case ("Q4_K", "q4_k"); null pointer when there is none.
[[nodiscard]] FLYWHEEL_API const dtype_info* find_dtype(std::string_view name) noexcept;

}  // namespace flywheel::inline v0
