// Four-way dot products of bytes into 32 bits on vectors or instructions that q_dot4.hpp is not made for. Include after
// one simd_*.hpp that has dot4.
#pragma once

#include "kernels/matmul/q_codes.hpp"
#include "kernels/matmul/q_tiles.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Six rows by two vectors of columns: twelve accumulators, which with two of weights and a broadcast fit 16 registers.
template <class S>
struct dot4_steps {
  using W = typename S::bytes;
  static constexpr std::int64_t tile_rows = 6;
  static constexpr int vectors(int rows) { return rows; }
  template <class Panel>
  static constexpr bool is_signed = false;

  template <int R>
  [[gnu::always_inline]] static inline void start(const std::int32_t* from, W (&acc)[R][2]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = S::set1_word(from ? from[r] : 0);
  }

  template <class Panel, int R, int Step, int End>
  [[gnu::always_inline]] static inline void steps(const std::byte* codes, const std::int32_t* q, W (&acc)[R][2],
                                                  const prefetch_place& next) {
    if constexpr (Step < End) {
      prefetch_step<S, Panel::unit_bytes / Panel::blocks, Step>(next);
      const W w0 = Panel::codes::template at<Step>(codes, 0);
      const W w1 = Panel::codes::template at<Step>(codes, 1);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const W a = S::set1_word(q[Step * R + r]);
        acc[r][0] = S::dot4(acc[r][0], w0, a);
        acc[r][1] = S::dot4(acc[r][1], w1, a);
      }
      steps<Panel, R, Step + 1, End>(codes, q, acc, next);
    }
  }

  template <int R>
  [[gnu::always_inline]] static inline W total(const W (&acc)[R][2], int r, int v) {
    return acc[r][v];
  }
};

/// The same for signed bytes (codes: signed_codes) with an instruction that takes the activations from any lane (NEON):
/// rows share a load, and nothing is broadcast.
template <class S>
struct dot4_lane_steps {
  using W = typename S::bytes;
  static constexpr std::int64_t tile_rows = 6;
  static constexpr int vectors(int rows) { return rows; }
  template <class Panel>
  static constexpr bool is_signed = Panel::zero == 128;

  template <int R>
  [[gnu::always_inline]] static inline void start(const std::int32_t* from, W (&acc)[R][2]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = S::set1_word(from ? from[r] : 0);
  }

  template <int R, int Row>
  [[gnu::always_inline]] static inline void rows(const std::int32_t* q, W w0, W w1, W (*acc)[2]) {
    if constexpr (Row < R) {
      constexpr int together = R - Row < 4 ? R - Row : 4;
      lanes<together, 0>(S::template load_words<together>(q + Row), w0, w1, acc + Row);
      rows<R, Row + together>(q, w0, w1, acc);
    }
  }
  template <int N, int Lane>
  [[gnu::always_inline]] static inline void lanes(W a, W w0, W w1, W (*acc)[2]) {
    if constexpr (Lane < N) {
      acc[Lane][0] = S::template dot4_lane<Lane>(acc[Lane][0], w0, a);
      acc[Lane][1] = S::template dot4_lane<Lane>(acc[Lane][1], w1, a);
      lanes<N, Lane + 1>(a, w0, w1, acc);
    }
  }

  template <class Panel, int R, int Step, int End>
  [[gnu::always_inline]] static inline void steps(const std::byte* codes, const std::int32_t* q, W (&acc)[R][2],
                                                  const prefetch_place& next) {
    if constexpr (Step < End) {
      prefetch_step<S, Panel::unit_bytes / Panel::blocks, Step>(next);
      rows<R, 0>(q + Step * R, Panel::codes::template at<Step>(codes, 0), Panel::codes::template at<Step>(codes, 1),
                 acc);
      steps<Panel, R, Step + 1, End>(codes, q, acc, next);
    }
  }

  template <int R>
  [[gnu::always_inline]] static inline W total(const W (&acc)[R][2], int r, int v) {
    return acc[r][v];
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
