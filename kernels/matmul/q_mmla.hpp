// Products of 2 x 8 by 8 x 2 bytes into 2 x 2 words (arm64 i8mm): twice the multiplications of a dot product of fours.
// Include after simd_i8mm.hpp.
//
// Weights: paired_codes. Activations: i8 q[4][rows][8] instead of q[8][rows][4].
#pragma once

#include "kernels/matmul/q_codes.hpp"
#include "kernels/matmul/q_tiles.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Six rows by two vectors of columns. Two rows' accumulators of a vector v are acc[r][v], of columns 0 and 1, and
/// acc[r + 1][v], of columns 2 and 3, each with columns in its halves and rows in these. A row that is left alone has
/// both halves of its eight products there instead of two rows, from dot products of fours.
template <class S>
struct mmla_steps {
  using W = typename S::bytes;
  static constexpr std::int64_t tile_rows = 6;
  static constexpr int vectors(int rows) { return (rows + 1) / 2 * 2; }
  template <class Panel>
  static constexpr bool is_signed = false;

  template <int R>
  [[gnu::always_inline]] static inline void start(const std::int32_t* from, W (&acc)[vectors(R)][2]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r += 2) {
      W s = S::set1_word(0);
      if (from) s = r + 1 < R ? S::load_two_words(from + r) : S::word_and_zero(from[r]);
      acc[r][0] = acc[r][1] = acc[r + 1][0] = acc[r + 1][1] = s;
    }
  }

  template <class Panel, int R, int Step, int End>
  [[gnu::always_inline]] static inline void steps(const std::byte* codes, const std::int32_t* q,
                                                  W (&acc)[vectors(R)][2], const prefetch_place& next) {
    if constexpr (Step < End) {
      prefetch_step<S, Panel::unit_bytes / Panel::blocks, Step>(next);
      prefetch_step<S, Panel::unit_bytes / Panel::blocks, Step + 1>(next);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const W w0 = Panel::codes::template at<Step>(codes, v);
        const W w1 = Panel::codes::template at<Step + 1>(codes, v);
#pragma GCC unroll 8
        for (int r = 0; r < R; r += 2) {
          const std::int32_t* const from = q + Step * R + 2 * r;
          if (r + 1 < R) {
            const W a = S::load_bytes(from);
            acc[r][v] = S::dot8(acc[r][v], w0, a);
            acc[r + 1][v] = S::dot8(acc[r + 1][v], w1, a);
          } else {
            const W a = S::load_two_words(from);
            acc[r][v] = S::dot4(acc[r][v], w0, a);
            acc[r + 1][v] = S::dot4(acc[r + 1][v], w1, a);
          }
        }
      }
      steps<Panel, R, Step + 2, End>(codes, q, acc, next);
    }
  }

  template <int R>
  [[gnu::always_inline]] static inline W total(const W (&acc)[vectors(R)][2], int r, int v) {
    if (r % 2 == 1) return S::odd_words(acc[r - 1][v], acc[r][v]);
    return r + 1 < R ? S::even_words(acc[r][v], acc[r + 1][v]) : S::add_neighbours(acc[r][v], acc[r + 1][v]);
  }
};

template <class Panel, class S, class Scales>
struct mmla_product : q_product<Panel, q_tiles<S, mmla_steps<S>>, Scales> {
  using base = q_product<Panel, q_tiles<S, mmla_steps<S>>, Scales>;

  static void prepare(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
                      std::int64_t k, std::byte* out) {
    base::prepare(x, x_stride, row_begin, row_end, k, out);
    for (std::int64_t row = row_begin; row < row_end; row += base::tile_rows) {
      const std::int64_t rows = least(base::tile_rows, row_end - row);
      if (rows == 1) continue;
      // Before a block's codes are its sums and scales.
      std::byte* block = out + static_cast<std::size_t>(row) * base::row_bytes(k);
      block += static_cast<std::size_t>(rows) * (base::block_bytes - 32);
      for (std::int64_t i = 0; i < k; i += 32, block += static_cast<std::size_t>(rows) * base::block_bytes) {
        if (i > 0 && i % Scales::group == 0) block += static_cast<std::size_t>(rows) * Scales::group_bytes;
        pair_steps(reinterpret_cast<std::int32_t*>(block), rows);
      }
    }
  }

  /// From [8][rows] words to [4][rows][2].
  static void pair_steps(std::int32_t* q, std::int64_t rows) {
    for (int pair = 0; pair < 4; ++pair, q += 2 * rows) {
      std::int32_t two[2 * base::tile_rows];
      for (std::int64_t r = 0; r < rows; ++r) {
        two[2 * r] = q[r];
        two[2 * r + 1] = q[rows + r];
      }
      __builtin_memcpy(q, two, static_cast<std::size_t>(2 * rows) * sizeof *q);
    }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
