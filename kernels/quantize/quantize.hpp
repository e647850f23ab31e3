// f32 rows to scalar formats, searching for scales: the algorithms of flywheel/formats/encoding over the cluster's
// vectors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flywheel/core/dtype.hpp"
#include "flywheel/formats/encoding/rounding.hpp"

namespace flywheel::inline v0::kernels {

struct quantize_args {
  dtype type;
  formats::rounding method;
  const float* x;  // [rows, cols], whole blocks, finite
  std::int64_t rows, cols;
  const float* importance;  // [cols], or null
  float importance_factor;  // makes the mean 1: formats::encoding::weighting
  std::byte* out;           // [rows], each row_bytes(type, cols)
};

/// False for types without a scheme (formats/encoding/blocks.hpp): nothing was done.
using quantize_fn = bool (*)(const quantize_args& args);

}  // namespace flywheel::inline v0::kernels
