// The vector type that encoders are written over: one lane is one group of values under a scale, so that an algorithm
// for a group is written once and runs on as many groups as a register has floats. `S` is scalar_lanes or quad_lanes
// here, or one of the library's vector types (kernels/simd_*.hpp), which have the same functions.
//
// Everything that depends on S is a template over it: the library compiles it once for each instruction set, with S in
// an unnamed namespace, and the linker must never exchange those copies. For the same reason nothing here calls inline
// functions of other headers, but for half.hpp's in scalar_lanes and quad_lanes, which are for the default instruction
// set alone.
#pragma once

#include <cstdint>

#include "flywheel/core/config.hpp"
#include "flywheel/formats/half.hpp"

namespace flywheel::inline v0::formats::encoding {

/// Ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no bits behind the point. -ffast-math must not see that it is
/// the same number that goes again; clang's pragma and GCC's __builtin_assoc_barrier did not hide it.
template <class T>
T round_by_adding(T x, T much) noexcept {
  x = x + much;
#if defined(__SSE2__)
  __asm__("" : "+x"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#elif defined(__GNUC__)
  __asm__("" : "+m"(x));
#endif
  return x - much;
}

/// One lane, plain C++.
struct scalar_lanes {
  using floats = float;
  using bytes = std::int32_t;
  using mask = bool;
  static constexpr int width = 1;

  static float zero() noexcept { return 0; }
  static float set1(float x) noexcept { return x; }
  static float load(const float* p) noexcept { return *p; }
  static void store(float* p, float x) noexcept { *p = x; }
  static float add(float a, float b) noexcept { return a + b; }
  static float sub(float a, float b) noexcept { return a - b; }
  static float mul(float a, float b) noexcept { return a * b; }
  static float div(float a, float b) noexcept { return a / b; }
  static float fma(float a, float b, float c) noexcept { return a * b + c; }
  static float fnma(float a, float b, float c) noexcept { return c - a * b; }
  static float max(float a, float b) noexcept { return a > b ? a : b; }
  static float min(float a, float b) noexcept { return a < b ? a : b; }
  static float abs(float x) noexcept { return x < 0 ? -x : x; }
  static float round(float x) noexcept { return round_by_adding(x, 12582912.0F); }
  static bool less(float a, float b) noexcept { return a < b; }
  static float select(bool which, float a, float b) noexcept { return which ? a : b; }
  static float sum(float x) noexcept { return x; }
  static float largest(float x) noexcept { return x; }
  static float load_f16(const void* p) noexcept { return f16_to_f32(*static_cast<const std::uint16_t*>(p)); }
  static void store_f16(void* p, float x) noexcept { *static_cast<std::uint16_t*>(p) = f32_to_f16(x); }
  static std::int32_t to_words(float x) noexcept { return static_cast<std::int32_t>(x); }
  static void store_low_bytes(void* p, std::int32_t x) noexcept {
    *static_cast<std::uint8_t*>(p) = static_cast<std::uint8_t>(x);
  }
};

#if defined(__GNUC__)
/// Four lanes in the compiler's own vectors: whatever registers of 16 bytes the target has by default.
struct quad_lanes {
  using floats = float __attribute__((vector_size(16)));
  using bytes = std::int32_t __attribute__((vector_size(16)));
  using mask = bytes;
  static constexpr int width = 4;

  static floats zero() noexcept { return floats{}; }
  static floats set1(float x) noexcept { return floats{x, x, x, x}; }
  static floats load(const float* p) noexcept {
    floats x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(float* p, floats x) noexcept { __builtin_memcpy(p, &x, sizeof x); }
  static floats add(floats a, floats b) noexcept { return a + b; }
  static floats sub(floats a, floats b) noexcept { return a - b; }
  static floats mul(floats a, floats b) noexcept { return a * b; }
  static floats div(floats a, floats b) noexcept { return a / b; }
  static floats fma(floats a, floats b, floats c) noexcept { return a * b + c; }
  static floats fnma(floats a, floats b, floats c) noexcept { return c - a * b; }
  static floats max(floats a, floats b) noexcept { return select(a > b, a, b); }
  static floats min(floats a, floats b) noexcept { return select(a < b, a, b); }
  static floats abs(floats x) noexcept { return as_floats(reinterpret_cast<bytes>(x) & 0x7FFFFFFF); }
  static floats round(floats x) noexcept { return round_by_adding(x, set1(12582912.0F)); }
  static mask less(floats a, floats b) noexcept { return a < b; }
  static floats select(mask which, floats a, floats b) noexcept {
    return as_floats((which & reinterpret_cast<bytes>(a)) | (~which & reinterpret_cast<bytes>(b)));
  }
  static float sum(floats x) noexcept { return (x[0] + x[2]) + (x[1] + x[3]); }
  static float largest(floats x) noexcept {
    const float low = x[0] > x[1] ? x[0] : x[1], high = x[2] > x[3] ? x[2] : x[3];
    return low > high ? low : high;
  }
  static floats load_f16(const void* p) noexcept {
    const auto* const h = static_cast<const std::uint16_t*>(p);
    return floats{f16_to_f32(h[0]), f16_to_f32(h[1]), f16_to_f32(h[2]), f16_to_f32(h[3])};
  }
  static void store_f16(void* p, floats x) noexcept {
    for (int i = 0; i < 4; ++i) static_cast<std::uint16_t*>(p)[i] = f32_to_f16(x[i]);
  }
  static bytes to_words(floats x) noexcept { return __builtin_convertvector(x, bytes); }
  static void store_low_bytes(void* p, bytes x) noexcept {
    for (int i = 0; i < 4; ++i) static_cast<std::uint8_t*>(p)[i] = static_cast<std::uint8_t>(x[i]);
  }

 private:
  static floats as_floats(bytes x) noexcept { return reinterpret_cast<floats>(x); }
};
using portable_lanes = quad_lanes;
#else
using portable_lanes = scalar_lanes;
#endif

template <class S>
struct condition {
  typename S::mask m;
};

/// S::width floats with arithmetic.
template <class S>
struct lanes {
  typename S::floats v;

  lanes() = default;
  lanes(typename S::floats x) : v(x) {}
  [[nodiscard]] static lanes all(float x) { return S::set1(x); }
  [[nodiscard]] static lanes load(const float* p) { return S::load(p); }
  void store(float* p) const { S::store(p, v); }
  [[nodiscard]] float first() const {
    alignas(64) float all[S::width];
    store(all);
    return all[0];
  }

  friend lanes operator+(lanes a, lanes b) { return S::add(a.v, b.v); }
  friend lanes operator-(lanes a, lanes b) { return S::sub(a.v, b.v); }
  friend lanes operator*(lanes a, lanes b) { return S::mul(a.v, b.v); }
  friend lanes operator/(lanes a, lanes b) { return S::div(a.v, b.v); }
  friend condition<S> operator<(lanes a, lanes b) { return {S::less(a.v, b.v)}; }
};

template <class S>
lanes<S> fma(lanes<S> a, lanes<S> b, lanes<S> c) {
  return S::fma(a.v, b.v, c.v);
}
/// c - a b
template <class S>
lanes<S> fnma(lanes<S> a, lanes<S> b, lanes<S> c) {
  return S::fnma(a.v, b.v, c.v);
}
template <class S>
lanes<S> least(lanes<S> a, lanes<S> b) {
  return S::min(a.v, b.v);
}
template <class S>
lanes<S> most(lanes<S> a, lanes<S> b) {
  return S::max(a.v, b.v);
}
template <class S>
lanes<S> magnitude(lanes<S> x) {
  return S::abs(x.v);
}
template <class S>
lanes<S> select(condition<S> which, lanes<S> yes, lanes<S> no) {
  return S::select(which.m, yes.v, no.v);
}
/// The nearest integer within [lo, hi], both integral.
template <class S>
lanes<S> round_within(lanes<S> x, float lo, float hi) {
  return S::round(S::min(S::max(x.v, S::set1(lo)), S::set1(hi)));
}
/// 1 / x, and 0 where that is not finite and for NaN.
template <class S>
lanes<S> inverse(lanes<S> x) {
  using V = lanes<S>;
  return select(V::all(0x1p-128F) < magnitude(x), V::all(1) / x, V::all(0));
}
/// As an f16 stores it; beyond its range the largest finite f16.
template <class S>
lanes<S> through_f16(lanes<S> x) {
  alignas(64) std::uint16_t halves[S::width];
  S::store_f16(halves, S::min(S::max(x.v, S::set1(-65504.0F)), S::set1(65504.0F)));
  return S::load_f16(halves);
}

constexpr float f16_step = 0x1p-24F;  ///< Between the smallest numbers of f16.
/// Scales from here on lose less than 2% to rounding, which any search takes care of.
constexpr float f16_smooth = 32 * f16_step;

/// A scale as an f16 stores it: that of the next larger magnitude below `roomy_below` (f16_step, or f16_smooth), else
/// the nearest. A scale that is too small cuts off the largest values, one that is 0 all of them; one that is too large
/// costs resolution alone.
template <class S>
lanes<S> scale_through_f16(lanes<S> x, float roomy_below) {
  using V = lanes<S>;
  const V d = through_f16(x), step = V::all(f16_step);
  const V larger = d + select(x < V::all(0), V::all(0) - step, step);
  return select(magnitude(d) < least(magnitude(x), V::all(roomy_below)), larger, d);
}

}  // namespace flywheel::inline v0::formats::encoding
