// exp and what is made of it over `simd` vectors: the algorithms of scalar_math.hpp. Include after one simd_*.hpp.
#pragma once

#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class S>
typename S::floats exp_vector(typename S::floats x) {
  using V = typename S::floats;
  // min and max give their second operand where one is NaN.
  x = S::min(S::set1(exp_highest), S::max(S::set1(exp_lowest), x));
  const V magic = S::set1(round_magic);
  const V n = S::sub(S::fma(x, S::set1(exp_log2e), magic), magic);
  V r = S::fnma(n, S::set1(exp_ln2_high), x);
  r = S::fnma(n, S::set1(exp_ln2_low), r);
  V p = S::fma(r, S::set1(exp_c[4]), S::set1(exp_c[3]));
  p = S::fma(r, p, S::set1(exp_c[2]));
  p = S::fma(r, p, S::set1(exp_c[1]));
  p = S::fma(r, p, S::set1(exp_c[0]));
  p = S::fma(S::mul(r, r), p, r);
  return S::scale_power(S::add(p, S::set1(1)), n);
}

/// 2^x - 2^-100 for x <= 0, and 0 from x = -100 down: the algorithm of exp without its multiplications by log2(e) and
/// ln(2). Never denormal: products with such weights take a hundred times longer, and there are many far from a peak.
template <class S>
typename S::floats exp2_vector(typename S::floats x) {
  using V = typename S::floats;
  x = S::max(S::set1(exp2_lowest), x);
  const V magic = S::set1(round_magic);
  const V n = S::sub(S::add(x, magic), magic);
  const V r = S::sub(x, n);
  V p = S::fma(r, S::set1(exp2_c[5]), S::set1(exp2_c[4]));
  p = S::fma(r, p, S::set1(exp2_c[3]));
  p = S::fma(r, p, S::set1(exp2_c[2]));
  p = S::fma(r, p, S::set1(exp2_c[1]));
  p = S::fma(r, p, S::set1(exp2_c[0]));
  return S::sub(S::scale_power(S::fma(r, p, S::set1(1)), n), S::set1(0x1p-100f));
}

template <class S>
typename S::floats tanh_vector(typename S::floats x) {
  const typename S::floats one = S::set1(1);
  const typename S::floats e = exp_vector<S>(S::mul(S::set1(-2), S::abs(x)));
  return S::copy_sign(S::div(S::sub(one, e), S::add(one, e)), x);
}

template <class S>
typename S::floats sigmoid_vector(typename S::floats x) {
  return S::div(S::set1(1), S::add(S::set1(1), exp_vector<S>(S::sub(S::zero(), x))));
}

template <class S>
typename S::floats silu_vector(typename S::floats x) {
  return S::div(x, S::add(S::set1(1), exp_vector<S>(S::sub(S::zero(), x))));
}

template <class S>
typename S::floats gelu_tanh_vector(typename S::floats x) {
  const typename S::floats cubic = S::fma(S::mul(S::mul(x, x), S::set1(0.044715f)), x, x);
  return S::div(x, S::add(S::set1(1), exp_vector<S>(S::mul(S::set1(-1.59576912f), cubic))));
}

template <class S>
typename S::floats clamped_swish_vector(typename S::floats x) {
  const typename S::floats m = S::min(S::set1(swish_limit), x);
  return S::div(m, S::add(S::set1(1), exp_vector<S>(S::mul(S::set1(-swish_slope), m))));
}

template <class S>
typename S::floats relu_vector(typename S::floats x) {
  return S::max(S::zero(), x);
}

}  // namespace
}  // namespace flywheel::inline v0::kernels
