// How far kernels may be from their references, and why.
#pragma once

namespace flywheel::test::tolerance {

/// Products, relative to sum |x w|. f32 sums of up to 256 fused products, then of the sums: rounding errors of 2^-24
/// relative to the partial sums, which add up like a random walk; 1e-6 is 16 times 2^-24.
inline constexpr double matmul_f32 = 1e-6;
/// The same where all products are alike, so that all roundings go the same way: 256 times 2^-24.
inline constexpr double matmul_f32_worst = 1.6e-5;
/// The same for int8 activations, against the product of the quantized activations: dots of 32 are exact, K/32 of them
/// are scaled and added in f32. Formats with minima are added up as scale * (codes x) - minimum * (sum x): where the
/// two nearly cancel in all weights of a row, which random scales do once in a hundred draws, the error is larger than
/// this part of what is left.
inline constexpr double matmul_q8 = 1e-6;
/// Packed weights over the file's bytes.
inline constexpr double packed_bytes = 1.05;

/// Norms, relative to the result: sums in f32 lanes (a few 1e-7), two or three roundings.
inline constexpr double norm = 1e-6;
/// Layer norm relative to max|x| / deviation as well: the mean is subtracted in f32.
inline constexpr double layer_norm = 1e-6;
/// Rotation, relative to |a| + |b|: three roundings.
inline constexpr double rope = 2e-7;
/// silu, gelu, relative to the result times 1 + |a| / 3, a being what the exponential is taken of: exp within 2 ulp and
/// one division; a relative rounding error in a is that times |a| in exp(a).
inline constexpr double activation = 5e-7;
/// Sums and products of two or three numbers, relative to the sum of magnitudes.
inline constexpr double element = 1.2e-7;
/// Attention, relative to max |v|: scores are f32 sums over head_dim, and an error e in a score is a relative error e
/// in its weight; with |score| up to 30 and head_dim up to 256 this is some 1e-6 per unit of score.
inline constexpr double attention = 2e-5;
/// The same for quantized keys and values against exact attention over their decoded numbers and the rounded queries.
/// Weights times the values' scales may be 16-bit: errors of up to half a step, 2^-16 of the largest product, in each
/// of the 64 positions of a page, which add up like a random walk: 8 * 2^-16 = 1.2e-4 at worst.
inline constexpr double attention_quantized = 1e-4;

/// Gated delta rule, relative to the largest result: rounding errors of sums over up to 128 rows enter a state that
/// remembers them for as long as it remembers anything.
inline constexpr double delta_net = 2e-6;

}  // namespace flywheel::test::tolerance
