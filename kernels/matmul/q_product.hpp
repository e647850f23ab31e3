// Product of int8 activations with panels of block-quantized weights, for every cluster that has an int8 dot product.
// In an unnamed namespace: see f32_product.hpp.
//
// Activations are quantized in blocks of 32, q = round(x / scale) in [-127, 127]. For the rows of a tile (tile_rows, or
// those that are left) one block is, `halves` being 2 for weights with a scale per 16, otherwise 1,
//   i32 start[halves][rows]   where an int32 accumulator must start for sum (code - zero) * q to be right, so that
//                             zero points need no correction. For weights with minima (zero 0) instead
//   f32 sums[halves][rows]    the sum of the activations, times 2^e with power_scales
//   f32 scale[rows]           see block_scales and power_scales
//   i8  q[8][rows][4]
// After the blocks of a tile come the rows' own scales, where there are any. Activations with one scale for several
// blocks (group_scales) are laid out otherwise: see q_channel.hpp.
#pragma once

#include "kernels/matmul/matmul.hpp"
#include "kernels/matmul/q_panels.hpp"
#include "kernels/matmul/tile_store.hpp"
#include "kernels/q8_codes.hpp"

namespace flywheel::inline v0::kernels {
namespace {

constexpr std::int64_t most_tile_rows = 8;
constexpr std::int64_t whole_row = std::int64_t{1} << 40;  ///< A group of K without end.

/// Codes as row `r` of the `rows` of a tile block; `words`: where the block's codes begin.
inline void store_codes(const std::int8_t* q, std::int64_t rows, std::int64_t r, std::int32_t* words) {
  asm volatile("" : "+r"(q) : : "memory");  // through memory: compilers would take vectors apart in slower ways
  for (int s = 0; s < 8; ++s) __builtin_memcpy(words + s * rows + r, q + 4 * s, 4);
}

/// The head of row `r` of the `rows` of a tile block, and its codes. Accumulators start at `origin`; one activation
/// code stands for `unit` in sums.
template <class Panel>
void put_codes(const float* x, float inverse, std::uint32_t origin, float unit, std::int64_t rows, std::int64_t r,
               std::byte* block) {
  constexpr int halves = Panel::halves;
  alignas(64) std::int8_t q[32];
  std::int32_t sums[halves];
  round_codes<typename Panel::simd_type, halves>(x, inverse, q, sums);
  for (int h = 0; h < halves; ++h)
    if constexpr (Panel::zero == 0)
      reinterpret_cast<float*>(block)[h * rows + r] = static_cast<float>(sums[h]) * unit;
    else
      reinterpret_cast<std::int32_t*>(block)[h * rows + r] = static_cast<std::int32_t>(origin) - Panel::zero * sums[h];
  store_codes(q, rows, r, reinterpret_cast<std::int32_t*>(block) + (halves + 1) * rows);
}

/// scale = max|x| / 127 of each block. A finished int32 sum is converted, then multiplied twice.
struct block_scales {
  static constexpr bool powers = false;
  static constexpr bool grouped = false;  ///< Whether an int32 sum goes over several blocks.
  static constexpr std::size_t block_bytes(int halves) { return static_cast<std::size_t>(halves + 1) * 4 + 32; }
  /// What follows the blocks of each `group` of K, per row.
  static constexpr std::size_t group_bytes = 0;
  static constexpr std::int64_t group = whole_row;

  /// A tile of rows. Blocks go outermost, so that a line of the tile is written once.
  template <class Panel>
  static void quantize(const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t k, std::byte* tile) {
    for (std::int64_t i = 0; i < k; i += 32, tile += static_cast<std::size_t>(rows) * block_bytes(Panel::halves))
      for (std::int64_t r = 0; r < rows; ++r) {
        const float* const block = x + r * x_stride + i;
        const auto [scale, inverse] = q8_scale_of(peak_of<typename Panel::simd_type>(block));
        put_codes<Panel>(block, inverse, 0, 1, rows, r, tile);
        reinterpret_cast<float*>(tile)[Panel::halves * rows + r] = scale;
      }
  }
};

/// scale = row scale * 2^e, the smallest that holds the block: f32 row scale = max|x of the row| / 127 * 2^-20 after
/// the blocks, 0 <= e <= 20; with each block the number 1.5 * 2^23 * 2^e. An int32 accumulator that starts at that
/// number's bits is, as long as sums stay below 2^22 (see the assertion), the bits of (1.5 * 2^23 + sum) * 2^e: taking
/// the number away again converts the sum and scales it, and one multiply-add by the weights' scale is all that is
/// left.
struct power_scales {
  static constexpr bool powers = true;
  static constexpr bool grouped = false;
  static constexpr std::size_t block_bytes(int halves) { return block_scales::block_bytes(halves); }
  static constexpr std::size_t group_bytes = sizeof(float);  ///< The row's own scale.
  static constexpr std::int64_t group = whole_row;
  static constexpr std::uint32_t range = 20u << 23;
  static constexpr std::uint32_t origin = 0x4b400000u;  ///< The bits of 1.5 * 2^23.

  template <class Panel>
  static void quantize(const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t k, std::byte* tile) {
    static_assert((Panel::zero + Panel::largest) * 127 * 32 < 1 << 22);
    const std::int64_t blocks = k / 32;
    const std::size_t bytes = static_cast<std::size_t>(rows) * block_bytes(Panel::halves);
    const auto scale_of = [&](std::int64_t block, std::int64_t r) -> std::uint32_t& {
      return reinterpret_cast<std::uint32_t*>(tile + static_cast<std::size_t>(block) * bytes)[Panel::halves * rows + r];
    };
    float* const own_scales = reinterpret_cast<float*>(tile + static_cast<std::size_t>(blocks) * bytes);
    std::uint32_t peaks[most_tile_rows];
    for (std::int64_t r = 0; r < rows; ++r) {
      peaks[r] = 0;
      for (std::int64_t b = 0; b < blocks; ++b) {
        const std::uint32_t peak = scale_of(b, r) = peak_of<typename Panel::simd_type>(x + r * x_stride + 32 * b);
        peaks[r] = peak > peaks[r] ? peak : peaks[r];
      }
      const float peak = bits_as<float>(peaks[r]);
      const bool finite = peaks[r] < infinity_bits;
      if (!finite || peak < q8_smallest_row) peaks[r] = 0;
      own_scales[r] = !finite ? __builtin_nanf("") : peaks[r] ? peak / 127 * 0x1p-20f : 0;
    }
    for (std::int64_t b = 0; b < blocks; ++b)
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::uint32_t own = scale_of(b, r), least_peak = peaks[r] - range;  // what e = 0 holds
        std::uint32_t e = 0;                                                      // as a difference of bits: times 2^23
        if (peaks[r] && own > least_peak) e = (own - least_peak + 0x7fffffu) & ~0x7fffffu;
        scale_of(b, r) = origin + e;
        const float inverse = peaks[r] ? 127 / bits_as<float>(peaks[r]) * 0x1p20f : 0;
        put_codes<Panel>(x + r * x_stride + 32 * b, peaks[r] ? bits_as<float>(bits_as<std::uint32_t>(inverse) - e) : 0,
                         origin + e, bits_as<float>(0x3f800000u + e), rows, r,
                         tile + static_cast<std::size_t>(b) * bytes);
      }
  }
};

/// Where the current block of T tiles of prepared rows is.
template <int T>
struct tile_places {
  const std::byte* of[T];
  explicit tile_places(const std::byte* x, std::size_t tile_bytes) {
    for (int t = 0; t < T; ++t) of[t] = x + static_cast<std::size_t>(t) * tile_bytes;
  }
  void advance(std::size_t bytes) {
    for (int t = 0; t < T; ++t) of[t] += bytes;
  }
  /// The same places, unknown to the compiler: what is loaded from both is loaded twice, which costs nothing, while
  /// copies of registers take the time of products.
  [[gnu::always_inline]] inline tile_places again() const {
    tile_places p = *this;
    for (int t = 0; t < T; ++t) asm volatile("" : "+r"(p.of[t]));
    return p;
  }
};

/// Where the accumulators of row r of R start. Signed: the products are of (code - zero), so that zero needs no sums.
template <class Panel, class Scales, int R, bool Signed = false>
[[gnu::always_inline]] inline std::int32_t start_of(const std::byte* block, int half, int r) {
  const std::int32_t* const head = reinterpret_cast<const std::int32_t*>(block);
  if constexpr (Panel::zero != 0 && !Signed) return head[half * R + r];
  if constexpr (Scales::powers) return head[Panel::halves * R + r];
  return 0;
}

/// Where a panel's memory is prefetched: from `base` + ahead into L1, from `base` + 2 ahead into L2. L1 alone has too
/// few slots for misses to keep memory busy (measured on Emerald Rapids, Q4_0: 86% of the read bandwidth; both: 99%).
struct prefetch_place {
  const std::byte* base;
  std::size_t ahead;
};

/// Prefetches step Step's eighth of the lines of `Bytes` bytes. Called for all steps and blocks of a panel it touches
/// lines in the order of their addresses, whatever the order of the loads: hardware prefetchers then follow, which a
/// burst per block or two interleaved streams prevent (measured: a third of the bandwidth).
template <class S, std::size_t Bytes, int Step>
[[gnu::always_inline]] inline void prefetch_step(const prefetch_place& p) {
  constexpr std::size_t lines = (Bytes + 63) / 64;
#pragma GCC unroll 8
  for (std::size_t line = lines * Step / 8; line < lines * (Step + 1) / 8; ++line) {
    S::prefetch(p.base + 64 * line + p.ahead);
    S::prefetch_far(p.base + 64 * line + 2 * p.ahead);
  }
}

/// Tiles supplies tile_rows, tiles_at_once and
///   template <class Panel, class Scales, int R, int T = 1>
///   static void multiply(const std::byte* panel, const std::byte* x, std::size_t tile_bytes, std::int64_t units,
///                        float* sums, std::size_t ahead)
///     sums[r][c] = the whole product of T tiles of R prepared rows with a panel; may prefetch `ahead` bytes ahead in
///     the panel. T is 1, or tiles_at_once for R = tile_rows.
/// Scales: block_scales, power_scales or group_scales, of the activations.
template <class Panel, class Tiles, class Scales>
struct q_product {
  static constexpr int halves = Panel::halves;
  static constexpr std::int64_t tile_rows = Tiles::tile_rows;
  static_assert(tile_rows <= most_tile_rows);
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
    return static_cast<std::size_t>((k + 31) / 32) * block_bytes +
           static_cast<std::size_t>((k + Scales::group - 1) / Scales::group) * Scales::group_bytes;
  }

  static std::size_t prepared_bytes(std::int64_t m, std::int64_t k) {
    return round_up_64(static_cast<std::size_t>(m) * row_bytes(k));
  }

  static void prepare(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
                      std::int64_t k, std::byte* out) {
    for (std::int64_t row = row_begin; row < row_end; row += tile_rows) {
      std::byte* const tile = out + static_cast<std::size_t>(row) * row_bytes(k);
      const std::int64_t rows = least(tile_rows, row_end - row);
      Scales::template quantize<Panel>(x + row * x_stride, x_stride, rows, k, tile);
    }
  }

  static void run(const matmul_args& args) {
    constexpr std::int64_t most_rows = Tiles::tiles_at_once * tile_rows;
    alignas(64) float sums[most_rows * Panel::cols];
    const std::size_t bytes = panel_bytes(args.k);
    const std::int64_t group_panels =
        bytes < panel_group_bytes ? static_cast<std::int64_t>(panel_group_bytes / bytes) : 1;
    const std::int64_t group = group_panels * Panel::cols;
    for (std::int64_t begin = 0; begin < args.n; begin += group) {
      std::size_t ahead = args.prefetch_bytes;
      for (std::int64_t row = args.row_begin, rows; row < args.row_end; row += rows, ahead = 0) {
        rows = args.row_end - row;
        rows = rows >= most_rows ? most_rows : least(tile_rows, rows);
        const std::byte* x = args.prepared + static_cast<std::size_t>(row) * row_bytes(args.k);
        for (std::int64_t col = begin; col < least(begin + group, args.n); col += Panel::cols) {
          const std::byte* panel = args.panels + static_cast<std::size_t>(col / Panel::cols) * bytes;
          multiply_rows(rows, panel, x, args.k, sums, ahead);
          store_tile<Panel::cols>(args, row, row + rows, col, sums);
        }
      }
    }
  }

  static void multiply_rows(std::int64_t rows, const std::byte* panel, const std::byte* x, std::int64_t k, float* sums,
                            std::size_t ahead) {
    const std::int64_t n = units(k);
    const std::size_t tile_bytes = static_cast<std::size_t>(tile_rows) * row_bytes(k);
    if constexpr (Tiles::tiles_at_once > 1)
      if (rows > tile_rows)
        return Tiles::template multiply<Panel, Scales, tile_rows, Tiles::tiles_at_once>(panel, x, tile_bytes, n, sums,
                                                                                        ahead);
    switch (rows) {
      case 1:
        return Tiles::template multiply<Panel, Scales, 1>(panel, x, tile_bytes, n, sums, ahead);
      case 2:
        return Tiles::template multiply<Panel, Scales, 2>(panel, x, tile_bytes, n, sums, ahead);
      case 3:
        return Tiles::template multiply<Panel, Scales, 3>(panel, x, tile_bytes, n, sums, ahead);
      case 4:
        return Tiles::template multiply<Panel, Scales, 4>(panel, x, tile_bytes, n, sums, ahead);
      default:
        break;
    }
    if constexpr (tile_rows > 4) {
      if (rows == 5) return Tiles::template multiply<Panel, Scales, 5>(panel, x, tile_bytes, n, sums, ahead);
      return Tiles::template multiply<Panel, Scales, 6>(panel, x, tile_bytes, n, sums, ahead);
    }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
