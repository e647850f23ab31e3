#include "kernels/declare.hpp"

namespace flywheel::inline v0::kernels {
namespace {

// What every CPU that g++ and clang know has: vectors of 16 bytes, in SIMD registers or in pieces.
using floats = float __attribute__((vector_size(16)));
using shorts = std::int16_t __attribute__((vector_size(16)));

/// x = x * a + b on every chain; see vector.hpp. Through memory, because no constraint names the register of every CPU.
template <class V>
double multiply_add_burst(std::int64_t rounds, V a, V b, int width) {
  V chains[roof_chains] = {};
  for (std::int64_t i = 0; i < rounds; ++i) {
    for (V& x : chains) x = x * a + b;
    asm volatile("" : "+m"(a), "+m"(b));
  }
  asm volatile("" : : "m"(chains));
  return static_cast<double>(rounds) * roof_chains * width * 2;
}

}  // namespace

/// 16-bit integers: there is no portable way to multiply bytes.
double int8_dots_generic(std::int64_t rounds) {
  return multiply_add_burst(rounds, shorts{} + std::int16_t{3}, shorts{} + std::int16_t{5}, 8);
}
double f32_fmas_generic(std::int64_t rounds) { return multiply_add_burst(rounds, floats{} + 0.5f, floats{} + 1.0f, 4); }
double bf16_dots_generic(std::int64_t) { return 0; }

double read_pass_generic(const std::byte* data, std::size_t bytes) {
  std::uint64_t sum[8] = {};
  const auto* words = reinterpret_cast<const std::uint64_t*>(data);
  for (std::size_t w = 0; w < bytes / 8; w += 8) {
    __builtin_prefetch(words + w + 1024);
    for (std::size_t l = 0; l < 8; ++l) sum[l] ^= words[w + l];
  }
  asm volatile("" : : "m"(sum));
  return static_cast<double>(bytes);
}

}  // namespace flywheel::inline v0::kernels
