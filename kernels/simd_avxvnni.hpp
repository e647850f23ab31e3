// AVX2 with AVX-VNNI: simd_avx2.hpp and the four-way dot product in 256 bits.
#pragma once

#include "kernels/simd_avx2.hpp"

namespace flywheel::inline v0::kernels {
namespace {

struct simd_avxvnni : simd {
  /// acc + sum of four products, unsigned a, signed b; exact.
  static bytes dot4(bytes acc, bytes a, bytes b) { return _mm256_dpbusd_avx_epi32(acc, a, b); }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
