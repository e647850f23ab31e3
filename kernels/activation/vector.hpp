// Element-wise kernels over `simd` vectors. Include after one simd_*.hpp.
#pragma once

#include "kernels/activation/activation.hpp"
#include "kernels/vector_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Applies `one` to vectors of n elements; the last one may be partial. one(load, store): load(p) and store(p, x) are
/// full or partial accesses at the element in hand.
template <class S, class One>
void for_vectors(std::int64_t n, One one) {
  std::int64_t i = 0;
  for (; i + S::width <= n; i += S::width)
    one([i](const float* p) { return S::load(p + i); }, [i](float* p, typename S::floats x) { S::store(p + i, x); });
  if (const std::int64_t left = n - i; left > 0)
    one([i, left](const float* p) { return S::load_part(p + i, left); },
        [i, left](float* p, typename S::floats x) { S::store_part(p + i, left, x); });
}

template <class S>
struct element_wise {
  using V = typename S::floats;

  template <class Act>
  static void glu_with(Act act, const float* gate, const float* up, std::int64_t n, float* y) {
    for_vectors<S>(n, [=](auto load, auto store) { store(y, S::mul(act(load(gate)), load(up))); });
  }
  static void glu(activation kind, const float* gate, const float* up, std::int64_t n, float* y) {
    switch (kind) {
      case activation::silu:
        return glu_with([](V x) { return silu_vector<S>(x); }, gate, up, n, y);
      case activation::gelu_tanh:
        return glu_with([](V x) { return gelu_tanh_vector<S>(x); }, gate, up, n, y);
      case activation::relu:
        return glu_with([](V x) { return relu_vector<S>(x); }, gate, up, n, y);
      case activation::sigmoid:
        return glu_with([](V x) { return sigmoid_vector<S>(x); }, gate, up, n, y);
      case activation::clamped_swish:
        return for_vectors<S>(n, [=](auto load, auto store) {
          // min and max give their second operand where one is NaN.
          const V most = S::set1(swish_limit), least = S::set1(-swish_limit);
          const V clamped = S::max(least, S::min(most, load(up)));
          store(y, S::mul(clamped_swish_vector<S>(load(gate)), S::add(clamped, S::set1(1))));
        });
    }
  }

  template <class Act>
  static void activate_with(Act act, const float* x, std::int64_t n, float* y) {
    for_vectors<S>(n, [=](auto load, auto store) { store(y, act(load(x))); });
  }
  static void activate(activation kind, const float* x, std::int64_t n, float* y) {
    switch (kind) {
      case activation::silu:
        return activate_with([](V v) { return silu_vector<S>(v); }, x, n, y);
      case activation::gelu_tanh:
        return activate_with([](V v) { return gelu_tanh_vector<S>(v); }, x, n, y);
      case activation::relu:
        return activate_with([](V v) { return relu_vector<S>(v); }, x, n, y);
      case activation::sigmoid:
        return activate_with([](V v) { return sigmoid_vector<S>(v); }, x, n, y);
      case activation::clamped_swish:
        return activate_with([](V v) { return clamped_swish_vector<S>(v); }, x, n, y);
    }
  }

  static void add(const float* a, const float* b, std::int64_t n, float* y) {
    for_vectors<S>(n, [=](auto load, auto store) { store(y, S::add(load(a), load(b))); });
  }
  static void scaled_add(const float* x, float s, std::int64_t n, float* y) {
    for_vectors<S>(n, [=](auto load, auto store) { store(y, S::fma(S::set1(s), load(x), load(y))); });
  }
  static void scale(const float* x, float s, std::int64_t n, float* y) {
    for_vectors<S>(n, [=](auto load, auto store) { store(y, S::mul(S::set1(s), load(x))); });
  }
  static void softcap(const float* x, float cap, std::int64_t n, float* y) {
    for_vectors<S>(n, [=](auto load, auto store) {
      const V c = S::set1(cap);
      store(y, S::mul(c, tanh_vector<S>(S::div(load(x), c))));
    });
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
