// Reference codecs by dtype: the specification of every tensor format, short and scalar.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "flywheel/core/config.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/core/tensor.hpp"

namespace flywheel::inline v0::formats {

/// Decodes `elements` values (whole blocks; exactly one row of a dtype of kind row) to f32.
using decode_fn = void (*)(const std::byte* blocks, std::int64_t elements, float* out);
/// Encodes `elements` values (whole blocks; exactly one row of a dtype of kind row) with the format's plain rounding;
/// the quantization module has better encoders.
using encode_fn = void (*)(const float* values, std::int64_t elements, std::byte* blocks);

/// Null where this version has no codec for the format.
[[nodiscard]] FLYWHEEL_API decode_fn find_decoder(dtype type) noexcept;
[[nodiscard]] FLYWHEEL_API encode_fn find_encoder(dtype type) noexcept;

/// Decodes a dense tensor. Errors: unsupported (named) without a codec, invalid_argument when `out` has another size.
[[nodiscard]] FLYWHEEL_API result<void> decode(const tensor_view& tensor, std::span<float> out);

}  // namespace flywheel::inline v0::formats
