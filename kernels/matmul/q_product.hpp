// Product of int8 activations with panels of block-quantized weights, for every cluster that has an int8 dot product.
// In an unnamed namespace: see f32_product.hpp.
//
// Activations are quantized in blocks of 32, q = round(x / scale) in [-127, 127]. For the rows of a tile (tile_rows, or
// those that are left) one block is
//   i32 sum[halves][rows]   -8 * sum of q over 32, or, for weights with a scale per 16, -32 * that over each 16
//   32 bits scale[rows]     what a block's dot products must be multiplied with; see block_scales and power_scales
//   i8  q[8][rows][4]
// so that an int32 accumulator that starts at sum * (zero / 8 or 32) needs no correction for the weights' zero point.
// After the blocks of a tile come the rows' own scales, where there are any.
#pragma once

#include "kernels/matmul/matmul.hpp"
#include "kernels/matmul/q_panels.hpp"
#include "kernels/matmul/tile_store.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Blocks, or rows, whose largest magnitude is below this are taken as zero: quotients by it must stay finite.
constexpr float q8_smallest = 1e-30f;
constexpr float q8_smallest_row = 1e-28f;
constexpr std::uint32_t infinity_bits = 0x7f800000u;

/// Largest magnitude of 32 numbers, as bits: compared as integers, NaN is the largest.
inline std::uint32_t peak_of(const float* x) {
  std::uint32_t peak = 0;
  for (int i = 0; i < 32; ++i) {
    const std::uint32_t bits = bits_as<std::uint32_t>(x[i]) & 0x7fffffffu;
    peak = bits > peak ? bits : peak;
  }
  return peak;
}

/// round(x * inverse) of 32 numbers; zeros for inverse 0.
inline void round_codes(const float* x, float inverse, std::int32_t* q) {
  for (int i = 0; i < 32; ++i)
    q[i] = bits_as<std::int32_t>(__builtin_fmaf(x[i], inverse, round_magic)) - bits_as<std::int32_t>(round_magic);
  if (inverse == 0)
    for (int i = 0; i < 32; ++i) q[i] = 0;
}

/// Codes as row `r` of the `rows` of a tile block; `words`: where the block's codes begin.
inline void store_codes(const std::int32_t* q, std::int64_t rows, std::int64_t r, std::int32_t* words) {
  std::int8_t bytes[32];
  for (int i = 0; i < 32; ++i) bytes[i] = static_cast<std::int8_t>(q[i]);
  for (int s = 0; s < 8; ++s) __builtin_memcpy(words + s * rows + r, bytes + 4 * s, 4);
}

/// Codes of 32 numbers, and their sums, as row `r` of the `rows` of a tile block.
template <int Halves>
void put_codes(const float* x, float inverse, std::int64_t rows, std::int64_t r, std::byte* block) {
  std::int32_t q[32];
  round_codes(x, inverse, q);
  std::int32_t* const sums = reinterpret_cast<std::int32_t*>(block);
  for (int h = 0; h < Halves; ++h) {
    std::int32_t sum = 0;
    for (int i = 0; i < 32 / Halves; ++i) sum += q[32 / Halves * h + i];
    sums[h * rows + r] = -sum_factor(Halves) * sum;
  }
  store_codes(q, rows, r, sums + (Halves + 1) * rows);
}

/// scale = max|x| / 127 of each block, as f32. Two multiplications per dot product of 32.
struct block_scales {
  static constexpr bool powers = false;
  static constexpr bool whole_rows = false;
  static constexpr std::size_t block_bytes(int halves) { return static_cast<std::size_t>(halves + 1) * 4 + 32; }
  static constexpr std::size_t row_bytes = 0;  ///< Of a row's own scale.

  /// Row r of the `rows` of a tile; block_bytes: of a block of all rows.
  template <int Halves>
  static void quantize(const float* x, std::int64_t k, std::int64_t rows, std::int64_t r, std::size_t block_bytes,
                       std::byte* tile) {
    for (std::int64_t i = 0; i < k; i += 32, x += 32, tile += block_bytes) {
      const std::uint32_t peak_bits = peak_of(x);
      const float peak = bits_as<float>(peak_bits);
      float scale = peak / 127;
      float inverse = 127 / peak;
      if (peak_bits >= infinity_bits) {  // infinity or NaN anywhere makes the row's results NaN
        scale = __builtin_nanf("");
        inverse = 0;
      } else if (peak < q8_smallest) {
        scale = inverse = 0;
      }
      put_codes<Halves>(x, inverse, rows, r, tile);
      reinterpret_cast<float*>(tile)[Halves * rows + r] = scale;
    }
  }
};

/// scale = row scale * 2^e, the smallest that holds the block: f32 row scale = max|x of the row| / 127 * 2^-20 after
/// the blocks, e << 23 with each block, 0 <= e <= 20. Multiplying a weight's scale with 2^e is an integer addition to
/// its exponent, which leaves one multiplication per dot product of 32. The addition would turn a scale of 0 into a
/// tiny number: such weights get codes of zero when they are packed, or, where a format has no such code, see raised().
struct power_scales {
  static constexpr bool powers = true;
  static constexpr bool whole_rows = false;
  static constexpr std::size_t block_bytes(int halves) { return block_scales::block_bytes(halves); }
  static constexpr std::size_t row_bytes = sizeof(float);
  static constexpr std::uint32_t range = 20u << 23;

  template <int Halves>
  static void quantize(const float* x, std::int64_t k, std::int64_t rows, std::int64_t r, std::size_t block_bytes,
                       std::byte* tile) {
    const auto scale_of = [&](std::int64_t block) -> std::uint32_t& {
      std::byte* const at = tile + static_cast<std::size_t>(block) * block_bytes;
      return reinterpret_cast<std::uint32_t*>(at)[Halves * rows + r];
    };
    const std::int64_t blocks = k / 32;
    std::uint32_t peak_bits = 0;
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::uint32_t peak = scale_of(b) = peak_of(x + 32 * b);
      peak_bits = peak > peak_bits ? peak : peak_bits;
    }
    const float peak = bits_as<float>(peak_bits);
    const bool finite = peak_bits < infinity_bits;
    const bool zero = !finite || peak < q8_smallest_row;
    const float inverse = zero ? 0 : 127 / peak * 0x1p20f;
    const std::uint32_t least_peak = peak_bits - range;  // what e = 0 holds
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::uint32_t own = scale_of(b);
      std::uint32_t e = 0;
      if (!zero && own > least_peak) e = (own - least_peak + 0x7fffffu) & ~0x7fffffu;
      scale_of(b) = e;
      put_codes<Halves>(x + 32 * b, zero ? 0 : bits_as<float>(bits_as<std::uint32_t>(inverse) - e), rows, r,
                        tile + static_cast<std::size_t>(b) * block_bytes);
    }
    float* const own_scales = reinterpret_cast<float*>(tile + static_cast<std::size_t>(blocks) * block_bytes);
    own_scales[r] = !finite ? __builtin_nanf("") : zero ? 0 : peak / 127 * 0x1p-20f;
  }
};

/// -zero * sum(q) from -sum_factor * sum(q): where an int32 accumulator starts.
template <class Panel, class S>
[[gnu::always_inline]] inline typename S::bytes start_sum(std::int32_t sum) {
  if constexpr (Panel::zero == 0)
    return S::set1_word(0);
  else
    return S::template shift_words<__builtin_ctz(sum_factor(Panel::halves)) - __builtin_ctz(Panel::zero)>(
        S::set1_word(sum));
}

/// A weight's scale times the activations' 2^e.
template <class Panel, class S>
[[gnu::always_inline]] inline typename S::floats raised(typename S::floats d, std::int32_t e) {
  if constexpr (Panel::codes::has_zero)
    return S::add_exponent(d, S::set1_word(e));
  else
    return S::add_exponent_unless_zero(d, S::set1_word(e));
}

/// Prefetches step Step's eighth of the lines of `Bytes` bytes at p. Called for all steps and blocks of a panel it
/// touches lines in the order of their addresses, whatever the order of the loads: hardware prefetchers then follow,
/// which a burst per block or two interleaved streams prevent (measured: a third of the bandwidth).
template <class S, std::size_t Bytes, int Step>
[[gnu::always_inline]] inline void prefetch_step(const std::byte* p) {
  constexpr std::size_t lines = (Bytes + 63) / 64;
#pragma GCC unroll 8
  for (std::size_t line = lines * Step / 8; line < lines * (Step + 1) / 8; ++line) S::prefetch(p + 64 * line);
}

/// Tiles supplies tile_rows and
///   template <class Panel, class Scales, int R> static void multiply(const std::byte* panel, const std::byte* x,
///                                                                    std::int64_t units, float* sums, std::size_t
///                                                                    ahead)
///     sums[r][c] = the whole product of R prepared rows with a panel; may prefetch `ahead` bytes ahead in the panel.
/// Scales: block_scales, power_scales or row_scales, of the activations.
template <class Panel, class Tiles, class Scales>
struct q_product {
  static constexpr int halves = Panel::halves;
  static constexpr std::int64_t tile_rows = Tiles::tile_rows;
  /// Bytes of a block of 32 per row.
  static constexpr std::size_t block_bytes = Scales::block_bytes(halves);
  /// Panels that all rows are multiplied with before the next ones: about half of a usual L2 cache.
  static constexpr std::size_t panel_group_bytes = 512 * 1024;

  static std::int64_t units(std::int64_t k) { return (k + Panel::elements - 1) / Panel::elements; }

  static std::size_t panel_bytes(std::int64_t k) {
    return round_up_64(Panel::header_bytes + static_cast<std::size_t>(units(k)) * Panel::unit_bytes);
  }

  static void pack(const std::byte* rows, std::size_t row_stride, std::int32_t cols, std::int64_t k, std::byte* panel) {
    Panel::pack(rows, row_stride, cols, k, panel);
  }

  static std::size_t row_bytes(std::int64_t k) {
    return static_cast<std::size_t>((k + 31) / 32) * block_bytes + Scales::row_bytes;
  }

  static std::size_t prepared_bytes(std::int64_t m, std::int64_t k) {
    return round_up_64(static_cast<std::size_t>(m) * row_bytes(k));
  }

  static void prepare(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
                      std::int64_t k, std::byte* out) {
    for (std::int64_t row = row_begin; row < row_end; row += tile_rows) {
      std::byte* const tile = out + static_cast<std::size_t>(row) * row_bytes(k);
      const std::int64_t rows = least(tile_rows, row_end - row);
      for (std::int64_t r = 0; r < rows; ++r)
        Scales::template quantize<halves>(x + (row + r) * x_stride, k, rows, r,
                                          static_cast<std::size_t>(rows) * block_bytes, tile);
    }
  }

  static void run(const matmul_args& args) {
    alignas(64) float sums[tile_rows * Panel::cols];
    const std::size_t bytes = panel_bytes(args.k);
    const std::int64_t group_panels =
        bytes < panel_group_bytes ? static_cast<std::int64_t>(panel_group_bytes / bytes) : 1;
    const std::int64_t group = group_panels * Panel::cols;
    for (std::int64_t begin = 0; begin < args.n; begin += group) {
      std::size_t ahead = args.prefetch_bytes;
      for (std::int64_t row = args.row_begin; row < args.row_end; row += tile_rows, ahead = 0) {
        const std::int64_t rows = least(tile_rows, args.row_end - row);
        const std::byte* x = args.prepared + static_cast<std::size_t>(row) * row_bytes(args.k);
        for (std::int64_t col = begin; col < least(begin + group, args.n); col += Panel::cols) {
          const std::byte* panel = args.panels + static_cast<std::size_t>(col / Panel::cols) * bytes;
          multiply_rows(rows, panel, x, units(args.k), sums, ahead);
          store_tile<Panel::cols>(args, row, row + rows, col, sums);
        }
      }
    }
  }

  static void multiply_rows(std::int64_t rows, const std::byte* panel, const std::byte* x, std::int64_t units,
                            float* sums, std::size_t ahead) {
    switch (rows) {
      case 1:
        return Tiles::template multiply<Panel, Scales, 1>(panel, x, units, sums, ahead);
      case 2:
        return Tiles::template multiply<Panel, Scales, 2>(panel, x, units, sums, ahead);
      case 3:
        return Tiles::template multiply<Panel, Scales, 3>(panel, x, units, sums, ahead);
      case 4:
        return Tiles::template multiply<Panel, Scales, 4>(panel, x, units, sums, ahead);
      default:
        break;
    }
    if constexpr (tile_rows > 4) {
      if (rows == 5) return Tiles::template multiply<Panel, Scales, 5>(panel, x, units, sums, ahead);
      return Tiles::template multiply<Panel, Scales, 6>(panel, x, units, sums, ahead);
    }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
