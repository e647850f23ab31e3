// Rows from one element type to another: embedding rows to f32, keys and values to f16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flywheel/core/dtype.hpp"

namespace flywheel::inline v0::kernels {

/// Decodes n elements (whole blocks) of the format to f32, exactly as the reference codec.
using to_f32_fn = void (*)(const std::byte* row, std::int64_t n, float* out);
/// f32 to f16, round to nearest even, overflow to infinity, denormals kept.
using f32_to_f16_fn = void (*)(const float* x, std::int64_t n, std::uint16_t* out);

}  // namespace flywheel::inline v0::kernels
