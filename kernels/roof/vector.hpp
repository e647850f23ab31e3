// The bursts that clusters of one vector type share. `step` is one instruction of a chain: it must depend on the
// chain's last value, or compilers move it out of the loop.
#pragma once

#include "kernels/roof/roof.hpp"

/// The constraint of a vector register in inline assembly.
#if defined(__aarch64__)
#  define FLYWHEEL_VECTOR "w"
#else
#  define FLYWHEEL_VECTOR "v"
#endif

namespace flywheel::inline v0::kernels {
namespace {

/// roof_chains values with names of their own: of arrays, compilers keep copies in memory.
template <class V>
struct chains {
  V a, b, c, d, e, f, g, h, i, j, k, l;
  explicit chains(V x) : a(x), b(x), c(x), d(x), e(x), f(x), g(x), h(x), i(x), j(x), k(x), l(x) {}
};

/// `rounds` rounds of x = step(x, p, q) on every chain. Every chain looks used and changed after each step, which keeps
/// it in one register; p and q look new in every round.
template <class V, class Step>
[[gnu::always_inline]] inline void burst(std::int64_t rounds, V start, V p, V q, Step step) {
  chains<V> all(start);
  const auto next = [&](V & x) __attribute__((always_inline)) {
    x = step(x, p, q);
    asm volatile("" : "+" FLYWHEEL_VECTOR(x));
  };
  for (std::int64_t round = 0; round < rounds; ++round) {
    next(all.a), next(all.b), next(all.c), next(all.d), next(all.e), next(all.f);
    next(all.g), next(all.h), next(all.i), next(all.j), next(all.k), next(all.l);
    asm volatile("" : "+" FLYWHEEL_VECTOR(p), "+" FLYWHEEL_VECTOR(q));
  }
}

template <class S>
double f32_fma_burst(std::int64_t rounds) {
  burst(rounds, S::zero(), S::set1(1e-3f), S::set1(1e-3f),
        [](typename S::floats x, typename S::floats a, typename S::floats b) { return S::fma(a, b, x); });
  return static_cast<double>(rounds) * roof_chains * S::width * 2;
}

template <class S>
double read_burst(const std::byte* data, std::size_t bytes) {
  constexpr std::size_t step = S::width * sizeof(float), ahead = 8192;
  typename S::bytes a = S::set1_word(0), b = a, c = a, d = a;
  const auto add = [&](typename S::bytes & sum, const std::byte* from) __attribute__((always_inline)) {
    if (step == 64 || reinterpret_cast<std::uintptr_t>(from) % 64 == 0) S::prefetch(from + ahead);
    sum = S::xor_bits(sum, S::load_bytes(from));
  };
  for (const std::byte* const end = data + bytes; data < end; data += 4 * step) {
    add(a, data), add(b, data + step), add(c, data + 2 * step), add(d, data + 3 * step);
  }
  asm volatile("" : : FLYWHEEL_VECTOR(a), FLYWHEEL_VECTOR(b), FLYWHEEL_VECTOR(c), FLYWHEEL_VECTOR(d));
  return static_cast<double>(bytes);
}

}  // namespace
}  // namespace flywheel::inline v0::kernels

#undef FLYWHEEL_VECTOR
