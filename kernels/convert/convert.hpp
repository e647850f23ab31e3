// Rows from one element type to another: embedding rows to f32, keys and values to f16, activations to int8.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flywheel/core/dtype.hpp"

namespace flywheel::inline v0::kernels {

/// Decodes n elements (whole blocks) of the format to f32, exactly as the reference codec.
using to_f32_fn = void (*)(const std::byte* row, std::int64_t n, float* out);
/// f32 to f16, round to nearest even, overflow to infinity, denormals kept.
using f32_to_f16_fn = void (*)(const float* x, std::int64_t n, std::uint16_t* out);
/// Activations as int8 products take them. Each `group` consecutive elements (the last group may be shorter) have one
/// scale = max|x| / 127, and codes [n] = round(x * (127 / max|x|)), ties to even. Groups below q8_smallest are zeros,
/// with scale 0; where an element is not finite, codes are 0 and the scale is NaN.
using f32_to_q8_fn = void (*)(const float* x, std::int64_t n, std::int64_t group, std::int8_t* codes, float* scales);

}  // namespace flywheel::inline v0::kernels
