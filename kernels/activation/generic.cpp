#include "kernels/declare.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

float relu_f32(float x) { return x < 0 ? 0.0f : x; }  // keeps NaN

float clamped_swish_f32(float x) {
  const float m = choose(x > swish_limit, swish_limit, x);
  return m / (1 + exp_f32(-swish_slope * m));
}
float clamped_f32(float x) { return choose(x > swish_limit, swish_limit, choose(x < -swish_limit, -swish_limit, x)); }

template <float (*Act)(float)>
void glu_loop(const float* gate, const float* up, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = Act(gate[i]) * up[i];
}

template <float (*Act)(float)>
void activate_loop(const float* x, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = Act(x[i]);
}

}  // namespace

void glu_generic(activation kind, const float* gate, const float* up, std::int64_t n, float* y) {
  switch (kind) {
    case activation::silu:
      return glu_loop<silu_f32>(gate, up, n, y);
    case activation::gelu_tanh:
      return glu_loop<gelu_tanh_f32>(gate, up, n, y);
    case activation::relu:
      return glu_loop<relu_f32>(gate, up, n, y);
    case activation::sigmoid:
      return glu_loop<sigmoid_f32>(gate, up, n, y);
    case activation::clamped_swish:
      for (std::int64_t i = 0; i < n; ++i) y[i] = clamped_swish_f32(gate[i]) * (clamped_f32(up[i]) + 1);
      return;
  }
}

void activate_generic(activation kind, const float* x, std::int64_t n, float* y) {
  switch (kind) {
    case activation::silu:
      return activate_loop<silu_f32>(x, n, y);
    case activation::gelu_tanh:
      return activate_loop<gelu_tanh_f32>(x, n, y);
    case activation::relu:
      return activate_loop<relu_f32>(x, n, y);
    case activation::sigmoid:
      return activate_loop<sigmoid_f32>(x, n, y);
    case activation::clamped_swish:
      return activate_loop<clamped_swish_f32>(x, n, y);
  }
}

void add_generic(const float* a, const float* b, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = a[i] + b[i];
}

void scaled_add_generic(const float* x, float s, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = multiply_add(s, x[i], y[i]);
}

void scale_generic(const float* x, float s, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = s * x[i];
}

void softcap_generic(const float* x, float cap, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = cap * tanh_f32(x[i] / cap);
}

}  // namespace flywheel::inline v0::kernels
