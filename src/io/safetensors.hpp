// The dtypes of safetensors, shared by its reader and writer.
#pragma once

#include <string_view>

#include "flywheel/core/dtype.hpp"

namespace flywheel::inline v0::io::detail {

/// Types that safetensors and flywheel both have; their names there are the display names here.
inline constexpr dtype safetensors_types[] = {dtype::f64, dtype::f32, dtype::f16,     dtype::bf16,    dtype::i64,
                                              dtype::i32, dtype::i16, dtype::i8,      dtype::u64,     dtype::u32,
                                              dtype::u16, dtype::u8,  dtype::boolean, dtype::f8_e4m3, dtype::f8_e5m2};

/// Null for a name that is not in the table.
[[nodiscard]] constexpr const dtype_info* safetensors_dtype(std::string_view name) noexcept {
  for (const dtype type : safetensors_types)
    if (to_string(type) == name) return info(type);
  return nullptr;
}

[[nodiscard]] constexpr bool in_safetensors(dtype type) noexcept {
  for (const dtype known : safetensors_types)
    if (known == type) return true;
  return false;
}

}  // namespace flywheel::inline v0::io::detail
