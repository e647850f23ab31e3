// Roofs: what one core can do at best, for kernels to be held against. Bursts of nothing but the cluster's widest
// multiply-add instructions, in independent chains on registers, and passes that do nothing but read memory. They have
// no results, only a duration; the caller takes the time. On several cores, the caller runs one burst on each.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flywheel::inline v0::kernels {

/// Chains of a burst: enough to hide an instruction's latency (up to 5 cycles at 2 per cycle) in 16 registers.
inline constexpr int roof_chains = 12;

/// Each does `rounds` rounds of one instruction per chain and returns the number of operations; a multiplication and an
/// addition count as two. 0: the CPU has no such instruction.
///
/// int8_dots: products of 8-bit integers, summed at least in pairs. Where the cluster's only way is maddubs (AVX2), it
/// is maddubs alone: widening the 16-bit sums is the kernel's overhead.
using int8_dots_fn = double (*)(std::int64_t rounds);
/// f32_fmas: fused multiply-adds of 32-bit floats; a product and a sum where the cluster cannot fuse them.
using f32_fmas_fn = double (*)(std::int64_t rounds);
/// bf16_dots: products of bfloat16 numbers, summed in pairs into 32-bit floats.
using bf16_dots_fn = double (*)(std::int64_t rounds);

/// read_pass: reads `bytes` (a multiple of 512) from `data` (64-byte aligned) front to back, prefetching as far ahead
/// as products do by default. Returns the number of bytes.
using read_pass_fn = double (*)(const std::byte* data, std::size_t bytes);

}  // namespace flywheel::inline v0::kernels
