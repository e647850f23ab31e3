// Specification of the conversions: the codecs of the formats module.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "flywheel/formats/formats.hpp"
#include "flywheel/formats/half.hpp"

namespace flywheel::inline v0::kernels::reference {

inline std::uint16_t f32_to_f16(float x) { return formats::f32_to_f16(x); }
inline void f32_to_q8(const float* x, std::int64_t n, std::int64_t group, std::int8_t* codes, float* scales) {
  for (std::int64_t i = 0; i < n; i += group, ++scales) {
    const std::int64_t end = std::min(n, i + group);
    float peak = 0;
    bool finite = true;
    for (std::int64_t j = i; j < end; ++j)
      finite = finite && std::isfinite(x[j]), peak = std::max(peak, std::fabs(x[j]));
    const bool zero = !finite || peak < 1e-30F;
    *scales = !finite ? std::numeric_limits<float>::quiet_NaN() : zero ? 0 : peak / 127;
    const float inverse = 127 / peak;
    for (std::int64_t j = i; j < end; ++j)  // the product is exact in double, so it is rounded once
      codes[j] =
          zero ? std::int8_t{0}
               : static_cast<std::int8_t>(std::nearbyint(static_cast<double>(x[j]) * static_cast<double>(inverse)));
  }
}
inline formats::decode_fn to_f32(dtype type) { return formats::find_decoder(type); }

}  // namespace flywheel::inline v0::kernels::reference
