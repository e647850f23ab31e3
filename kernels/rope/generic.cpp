#include "kernels/declare.hpp"

namespace flywheel::inline v0::kernels {

void rope_generic(float* x, std::int64_t n_heads, std::int64_t head_stride, std::int64_t n_rot, const float* cos,
                  const float* sin, rope_pairs pairs) {
  const std::int64_t half = n_rot / 2;
  const std::int64_t apart = pairs == rope_pairs::halves ? half : 1;
  const std::int64_t step = pairs == rope_pairs::halves ? 1 : 2;
  for (std::int64_t h = 0; h < n_heads; ++h, x += head_stride)
    for (std::int64_t i = 0; i < half; ++i) {
      const float a = x[i * step];
      const float b = x[i * step + apart];
      x[i * step] = a * cos[i] - b * sin[i];
      x[i * step + apart] = a * sin[i] + b * cos[i];
    }
}

}  // namespace flywheel::inline v0::kernels
