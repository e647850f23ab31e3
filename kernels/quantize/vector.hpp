// Encoders over vectors. Include after one simd_*.hpp, or with lanes of formats/encoding/lanes.hpp.
#pragma once

#include "flywheel/formats/encoding/row.hpp"
#include "kernels/quantize/quantize.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class S>
struct quantization {
  template <dtype Type>
  static bool rows(const quantize_args& a) {
    if constexpr (formats::encoding::has_scheme<S, Type>) {
      constexpr std::int64_t header = info(Type)->header_bytes();
      constexpr std::int64_t elements = info(Type)->block_elements, bytes = info(Type)->block_bytes;
      const std::int64_t stride = header + a.cols / elements * bytes;
      const formats::encoding::weighting how{a.importance, a.importance_factor};
      for (std::int64_t r = 0; r < a.rows; ++r)
        formats::encoding::encode_values<S, Type>(a.x + r * a.cols, how, a.cols, a.method,
                                                  reinterpret_cast<std::uint8_t*>(a.out) + r * stride);
      return true;
    } else {
      return false;
    }
  }
  static bool run(const quantize_args& a) {
    switch (a.type) {
#define FLYWHEEL_DTYPE(name, id, display, elements, bytes, kind) \
  case dtype::name:                                              \
    return rows<dtype::name>(a);
#include "flywheel/core/dtypes.inc"
#undef FLYWHEEL_DTYPE
    }
    return false;
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
