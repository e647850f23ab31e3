// Quantizing rows without the library: the same algorithms as quantize(), headers only.
//
//   std::vector<std::byte> row(flywheel::row_bytes(flywheel::dtype::q4_k, 2048));
//   flywheel::quant::encode_row<flywheel::dtype::q4_k>(x, nullptr, 2048, flywheel::quant::rounding::search,
//   row.data());
#pragma once

#include <cstddef>
#include <cstdint>

#include "flywheel/formats/encoding/row.hpp"
#include "flywheel/quant/recipe.hpp"

namespace flywheel::inline v0::quant {

/// Formats that are a scale (and an offset) times levels; codebooks (IQ1, IQ2, IQ3) and plain numbers are not.
template <dtype Type>
concept scalar_format = formats::encoding::has_scheme<formats::encoding::scalar_lanes, Type>;

/// Encodes n finite values (whole blocks, or one row of a dtype of kind row); importance [n] or null, finite and not
/// negative: how much the error of each value counts. Never fails, allocates nothing, thread-safe. Lanes: the vector
/// type (formats/encoding/lanes.hpp).
template <dtype Type, class Lanes = formats::encoding::portable_lanes>
  requires scalar_format<Type>
void encode_row(const float* x, const float* importance, std::int64_t n, rounding method, std::byte* out) {
  namespace encoding = formats::encoding;
  encoding::encode_values<Lanes, Type>(x, encoding::weigh<Lanes>(importance, n), n, method,
                                       reinterpret_cast<std::uint8_t*>(out));
}

}  // namespace flywheel::inline v0::quant
