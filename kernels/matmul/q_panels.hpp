// Panels of block-quantized weights for products with int8 activations, over `simd` vectors. Include after one
// simd_*.hpp.
//
// A panel is `panel_cols` = 2 vectors of columns wide (a vector holds four consecutive k of width columns) and runs
// along K in units of one file block: the scales of the unit, then for each 32 of K (a block) its own scales and the
// codes. One step is four consecutive k, so a block is steps 0-7, each of two vectors v = 0, 1. Everything lies in the
// order in which it is needed: hardware prefetchers follow ascending addresses only.
//
//   scales         of the unit                    of a block
//   f16_scales     f16 d[cols]
//   f16_minima     f16 d[cols], m[cols]
//   e8m0_scales    u8 e[cols]
//   wide_scales    f16 d[cols]
//   k_scales_32    f16 d[cols], i8 s[8][cols]
//   k_scales_16    f16 d[cols]                    i8 s[2][cols]
//   k_minima       f16 d[cols], m[cols]           u8 s[cols], m[cols]
//   k_nibbles      f16 d[cols], m[cols]           u8 sm[2][cols]
//
//   codes          of a block, in vectors
//   nibbles        [4][2]: low nibbles are step 2j, high ones step 2j + 1
//   five_bits      [5][2]: low five bits are steps 0-4, upper three bits steps 5-7
//   two_bits       [2][2]: bits 2 (s % 4) of vector s / 4 are step s
//   plus_one_bit   [2] before another layout: bit s of a byte is step s
//   six_bits       [2][3][2]: low six bits are steps 4h .. 4h + 2, upper two bits step 4h + 3
//   whole_bytes    [8][2]
//
// Sizes equal the file's but for Q4_K, Q5_K, IQ4_XS (2.8%, 2.3%, 1.5% more) and Q3_K (3.6% more), whose sub-block
// scales are unpacked to bytes.
#pragma once

#include <cstring>

#include "kernels/matmul/file_blocks.hpp"
#include "kernels/matmul/matmul.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Levels as unsigned bytes: value + 128 for IQ4_NL and IQ4_XS, value + 16 for MXFP4.
alignas(16) constexpr std::uint8_t iq4_levels_128[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                         129, 141, 153, 166, 181, 197, 217, 241};
alignas(16) constexpr std::uint8_t fp4_levels_16[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

// ---- Codes. `at<step>(p, v)`: vector v of a step as unsigned bytes. `put`: from words[step][column], four codes each.

template <class S>
struct code_bytes {
  static constexpr std::size_t vector = sizeof(typename S::bytes);
  static constexpr int cols = 2 * S::width;
  using words = std::uint32_t[8][cols];
};

template <class S>
struct nibbles : code_bytes<S> {
  using typename code_bytes<S>::words;
  using code_bytes<S>::vector;
  using code_bytes<S>::cols;
  static constexpr std::size_t bytes = 8 * vector;

  template <int Step>
  static typename S::bytes at(const std::byte* p, int v) {
    const auto packed = S::load_bytes(p + static_cast<std::size_t>(Step / 2 * 2 + v) * vector);
    return S::and_bits(S::template shift<Step % 2 * 4>(packed), S::set1_byte(15));
  }
  static void put(const words& w, std::byte* p) {
    for (int j = 0; j < 4; ++j) {
      std::uint32_t out[cols];
      for (int c = 0; c < cols; ++c) out[c] = (w[2 * j][c] & 0x0f0f0f0f) | (w[2 * j + 1][c] & 0x0f0f0f0f) << 4;
      std::memcpy(p + j * 2 * vector, out, sizeof out);
    }
  }
};

template <class S, const std::uint8_t* Table>
struct level_nibbles : nibbles<S> {
  template <int Step>
  static typename S::bytes at(const std::byte* p, int v) {
    return S::look_up(Table, nibbles<S>::template at<Step>(p, v));
  }
};

/// One more bit per code before another layout: bit `Low` of the code.
template <class S, class Lower, int Low>
struct plus_one_bit : code_bytes<S> {
  using typename code_bytes<S>::words;
  using code_bytes<S>::vector;
  using code_bytes<S>::cols;
  static constexpr std::size_t bytes = Lower::bytes + 2 * vector;

  template <int Step>
  static typename S::bytes at(const std::byte* p, int v) {
    const auto bits = S::load_bytes(p + static_cast<std::size_t>(v) * vector);
    return S::merge(Lower::template at<Step>(p + 2 * vector, v), S::template shift<Step - Low>(bits),
                    S::set1_byte(1 << Low));
  }
  static void put(const words& w, std::byte* p) {
    Lower::put(w, p + 2 * vector);
    std::uint32_t out[cols] = {};
    for (int s = 0; s < 8; ++s)
      for (int c = 0; c < cols; ++c) out[c] |= (w[s][c] >> Low & 0x01010101) << s;
    std::memcpy(p, out, sizeof out);
  }
};

/// The low two bits, [2][2] vectors.
template <class S>
struct two_bits : code_bytes<S> {
  using typename code_bytes<S>::words;
  using code_bytes<S>::vector;
  using code_bytes<S>::cols;
  static constexpr std::size_t bytes = 4 * vector;

  template <int Step>
  static typename S::bytes at(const std::byte* p, int v) {
    const auto packed = S::load_bytes(p + static_cast<std::size_t>(Step / 4 * 2 + v) * vector);
    return S::and_bits(S::template shift<Step % 4 * 2>(packed), S::set1_byte(3));
  }
  static void put(const words& w, std::byte* p) {
    for (int half = 0; half < 2; ++half) {
      std::uint32_t out[cols] = {};
      for (int s = 0; s < 4; ++s)
        for (int c = 0; c < cols; ++c) out[c] |= (w[4 * half + s][c] & 0x03030303) << (2 * s);
      std::memcpy(p + half * 2 * vector, out, sizeof out);
    }
  }
};

/// Five vectors' low five bits are steps 0-4; their upper three bits make up steps 5-7. Fewer instructions than nibbles
/// and bits apart.
template <class S>
struct five_bits : code_bytes<S> {
  using typename code_bytes<S>::words;
  using code_bytes<S>::vector;
  using code_bytes<S>::cols;
  static constexpr std::size_t bytes = 10 * vector;

  template <int Step>
  static typename S::bytes at(const std::byte* p, int v) {
    p += static_cast<std::size_t>(v) * vector;
    const auto stored = [&](int i) { return S::load_bytes(p + static_cast<std::size_t>(2 * i) * vector); };
    if constexpr (Step < 5) return S::and_bits(stored(Step), S::set1_byte(31));
    constexpr int first = Step == 7 ? 4 : 2 * Step - 10;
    const auto low = S::and_bits(S::template shift<5>(stored(first)), S::set1_byte(7));
    if constexpr (Step < 7) return S::merge(low, S::template shift<2>(stored(first + 1)), S::set1_byte(0x18));
    return S::merge(S::merge(low, S::template shift<4>(stored(1)), S::set1_byte(8)), S::template shift<3>(stored(3)),
                    S::set1_byte(16));
  }
  static void put(const words& w, std::byte* p) {
    std::uint32_t out[5][cols];
    for (int c = 0; c < cols; ++c) {
      const std::uint32_t w5 = w[5][c], w6 = w[6][c], w7 = w[7][c];
      out[0][c] = (w[0][c] & 0x1f1f1f1f) | (w5 & 0x07070707) << 5;
      out[1][c] = (w[1][c] & 0x1f1f1f1f) | (w5 & 0x18181818) << 2 | (w7 & 0x08080808) << 4;
      out[2][c] = (w[2][c] & 0x1f1f1f1f) | (w6 & 0x07070707) << 5;
      out[3][c] = (w[3][c] & 0x1f1f1f1f) | (w6 & 0x18181818) << 2 | (w7 & 0x10101010) << 3;
      out[4][c] = (w[4][c] & 0x1f1f1f1f) | (w7 & 0x07070707) << 5;
    }
    for (int i = 0; i < 5; ++i) std::memcpy(p + static_cast<std::size_t>(2 * i) * vector, out[i], 2 * vector);
  }
};

/// For four steps each, three vectors: their low six bits are the first three steps, their upper two bits the last.
template <class S>
struct six_bits : code_bytes<S> {
  using typename code_bytes<S>::words;
  using code_bytes<S>::vector;
  using code_bytes<S>::cols;
  static constexpr std::size_t bytes = 12 * vector;

  template <int Step>
  static typename S::bytes at(const std::byte* p, int v) {
    p += Step / 4 * 6 * vector + static_cast<std::size_t>(v) * vector;
    const auto stored = [&](int i) { return S::load_bytes(p + static_cast<std::size_t>(2 * i) * vector); };
    if constexpr (Step % 4 < 3) return S::and_bits(stored(Step % 4), S::set1_byte(63));
    const auto low = S::and_bits(S::template shift<6>(stored(0)), S::set1_byte(3));
    return S::merge(S::merge(low, S::template shift<4>(stored(1)), S::set1_byte(12)), S::template shift<2>(stored(2)),
                    S::set1_byte(48));
  }
  static void put(const words& w, std::byte* p) {
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 3; ++i, p += 2 * vector) {
        std::uint32_t out[cols];
        for (int c = 0; c < cols; ++c)
          out[c] = (w[4 * half + i][c] & 0x3f3f3f3f) | (w[4 * half + 3][c] >> (2 * i) & 0x03030303) << 6;
        std::memcpy(p, out, sizeof out);
      }
  }
};

template <class S>
struct whole_bytes : code_bytes<S> {
  using typename code_bytes<S>::words;
  using code_bytes<S>::vector;
  static constexpr std::size_t bytes = 16 * vector;
  template <int Step>
  static typename S::bytes at(const std::byte* p, int v) {
    return S::load_bytes(p + static_cast<std::size_t>(2 * Step + v) * vector);
  }
  static void put(const words& w, std::byte* p) { std::memcpy(p, w, sizeof w); }
};

// ---- Scales. `scale(at, half, v)`: of that half of the block for vector v of columns. `minimum`: what must be
// multiplied with the sum of the activations and added.

/// Where a block's scales are.
struct scale_place {
  const std::byte* unit;   ///< the unit's scales
  const std::byte* block;  ///< the block's scales
  int index;               ///< of the block in its unit
  const float* wide;       ///< what `widen` made of the unit's scales, for units of several blocks
};

template <class S>
struct scale_base {
  using V = typename S::floats;
  static constexpr int cols = 2 * S::width;
  static constexpr std::size_t block_bytes = 0;
  static constexpr bool has_minimum = false;
  static constexpr int wide_floats = 0;
  static void widen(const std::byte*, float*) {}
  static V f16(const std::byte* p, int v) { return S::load_f16(p + v * S::width * 2); }
  static void put_u16(std::byte* p, int c, std::uint16_t x) { std::memcpy(p + 2 * c, &x, 2); }
  static void put_block(std::byte*, int, int, const block_parts&) {}
};

template <class S>
struct f16_scales : scale_base<S> {
  using scale_base<S>::cols;
  static constexpr std::size_t unit_bytes = 2 * cols;
  static auto scale(const scale_place& at, int, int v) { return scale_base<S>::f16(at.unit, v); }
  static void put_unit(std::byte* p, int c, const block_parts& parts) { scale_base<S>::put_u16(p, c, parts.d); }
};

/// d and m, of a file block or of its sub-blocks' scales.
template <class S>
struct two_f16 : scale_base<S> {
  using scale_base<S>::cols;
  static constexpr std::size_t unit_bytes = 4 * cols;
  static constexpr bool has_minimum = true;
  static auto d(const scale_place& at, int v) { return scale_base<S>::f16(at.unit, v); }
  static auto m(const scale_place& at, int v) { return scale_base<S>::f16(at.unit + 2 * cols, v); }
  static void put_unit(std::byte* p, int c, const block_parts& parts) {
    scale_base<S>::put_u16(p, c, parts.d);
    scale_base<S>::put_u16(p + 2 * cols, c, parts.m);
  }
};

template <class S>
struct f16_minima : two_f16<S> {
  static auto scale(const scale_place& at, int, int v) { return two_f16<S>::d(at, v); }
  static auto minimum(const scale_place& at, int, int v) { return two_f16<S>::m(at, v); }  // these formats add m
};

template <class S>
struct e8m0_scales : scale_base<S> {
  static constexpr std::size_t unit_bytes = scale_base<S>::cols;
  static auto scale(const scale_place& at, int, int v) { return S::load_e8m0(at.unit + v * S::width); }
  static void put_unit(std::byte* p, int c, const block_parts& parts) { p[c] = static_cast<std::byte>(parts.d); }
};

/// Units of several blocks: the f16 fields are converted once per unit.
template <class S>
struct wide_scales : scale_base<S> {
  using scale_base<S>::cols;
  static constexpr std::size_t unit_bytes = 2 * cols;
  static constexpr int wide_floats = cols;
  static void widen(const std::byte* unit, float* out) {
    for (int v = 0; v < 2; ++v) S::store(out + v * S::width, scale_base<S>::f16(unit, v));
  }
  static void put_unit(std::byte* p, int c, const block_parts& parts) { scale_base<S>::put_u16(p, c, parts.d); }
  static auto scale(const scale_place& at, int, int v) { return d(at, v); }
  static auto d(const scale_place& at, int v) { return S::load(at.wide + v * S::width); }
};

/// The same with minima, which these formats subtract.
template <class S>
struct wide_minima : two_f16<S> {
  using two_f16<S>::cols;
  static constexpr int wide_floats = 2 * cols;
  static void widen(const std::byte* unit, float* out) {
    for (int v = 0; v < 2; ++v) {
      S::store(out + v * S::width, two_f16<S>::d({unit, nullptr, 0, nullptr}, v));
      S::store(out + cols + v * S::width, S::sub(S::zero(), two_f16<S>::m({unit, nullptr, 0, nullptr}, v)));
    }
  }
  static auto d(const scale_place& at, int v) { return S::load(at.wide + v * S::width); }
  static auto m(const scale_place& at, int v) { return S::load(at.wide + cols + v * S::width); }
};

template <class S>
struct k_scales_32 : wide_scales<S> {
  using scale_base<S>::cols;
  static constexpr std::size_t unit_bytes = 2 * cols + 8 * cols;
  static auto scale(const scale_place& at, int, int v) {
    return S::mul(wide_scales<S>::d(at, v), S::load_i8(at.unit + (2 + at.index) * cols + v * S::width));
  }
  static void put_unit(std::byte* p, int c, const block_parts& parts) {
    scale_base<S>::put_u16(p, c, parts.d);
    for (int j = 0; j < 8; ++j) p[(2 + j) * cols + c] = static_cast<std::byte>(parts.scale[j]);
  }
};

template <class S>
struct k_scales_16 : wide_scales<S> {
  using scale_base<S>::cols;
  static constexpr std::size_t block_bytes = 2 * cols;
  static auto scale(const scale_place& at, int half, int v) {
    return S::mul(wide_scales<S>::d(at, v), S::load_i8(at.block + half * cols + v * S::width));
  }
  static void put_block(std::byte* p, int c, int index, const block_parts& parts) {
    for (int half = 0; half < 2; ++half) p[half * cols + c] = static_cast<std::byte>(parts.scale[2 * index + half]);
  }
};

template <class S>
struct k_minima : wide_minima<S> {
  using two_f16<S>::cols;
  static constexpr std::size_t block_bytes = 2 * cols;
  static auto scale(const scale_place& at, int, int v) {
    return S::mul(wide_minima<S>::d(at, v), S::load_u8(at.block + v * S::width));
  }
  static auto minimum(const scale_place& at, int, int v) {
    return S::mul(wide_minima<S>::m(at, v), S::load_u8(at.block + cols + v * S::width));
  }
  static void put_block(std::byte* p, int c, int index, const block_parts& parts) {
    p[c] = static_cast<std::byte>(parts.scale[index]);
    p[cols + c] = static_cast<std::byte>(parts.minimum[index]);
  }
};

template <class S>
struct k_nibbles : wide_minima<S> {
  using two_f16<S>::cols;
  static constexpr std::size_t block_bytes = 2 * cols;
  static auto scale(const scale_place& at, int half, int v) {
    return S::mul(wide_minima<S>::d(at, v), S::load_u4(at.block + half * cols + v * S::width, false));
  }
  static auto minimum(const scale_place& at, int half, int v) {
    return S::mul(wide_minima<S>::m(at, v), S::load_u4(at.block + half * cols + v * S::width, true));
  }
  static void put_block(std::byte* p, int c, int index, const block_parts& parts) {
    for (int half = 0; half < 2; ++half) p[half * cols + c] = static_cast<std::byte>(parts.scale[2 * index + half]);
  }
};

// ---- Formats.

/// Largest: of the codes. Halves: scales per 32 of K.
template <dtype Weight, class S, class Codes, class Scales, int Largest, int Halves = 1>
struct q_panel {
  using simd_type = S;
  using codes = Codes;
  using scales = Scales;
  static constexpr dtype weight = Weight;
  static constexpr int zero = zero_point(Weight);
  static constexpr int largest = Largest;
  static constexpr int halves = Halves;
  static constexpr int cols = 2 * S::width;
  static constexpr std::int64_t elements = info(Weight)->block_elements;  ///< Of K in a unit.
  static constexpr std::size_t file_bytes_of_unit = info(Weight)->block_bytes;
  static constexpr int blocks = elements / 32;
  static constexpr std::size_t block_bytes = Scales::block_bytes + Codes::bytes;
  static constexpr std::size_t unit_bytes = Scales::unit_bytes + blocks * block_bytes;
  static constexpr std::size_t header_bytes = 0;  ///< Before the first unit.

  // For formats with nothing but a scale per unit, whose activations may have one too; see sum_groups.
  static constexpr bool whole_rows = false;
  static constexpr std::size_t scale_bytes = Scales::unit_bytes;
  static auto scale(const std::byte* unit, int v) { return Scales::f16(unit, v); }

  /// Packs rows of k elements, stride bytes apart, into the `n` <= cols columns of a panel.
  static void pack(const std::byte* rows, std::size_t stride, int n, std::int64_t k, std::byte* panel) {
    for (std::int64_t unit = 0; unit < k / elements; ++unit, panel += unit_bytes)
      pack_unit(rows + static_cast<std::size_t>(unit) * file_bytes_of_unit, stride, n, panel);
  }

  /// Packs one unit from the blocks of `n` <= cols columns, stride bytes apart.
  static void pack_unit(const std::byte* from, std::size_t stride, int n, std::byte* unit) {
    alignas(64) typename Codes::words words[blocks];
    for (int c = 0; c < cols; ++c) {
      block_parts parts;
      if (c < n)
        take_apart<Weight>(reinterpret_cast<file_bytes>(from + static_cast<std::size_t>(c) * stride), parts);
      else
        std::memset(&parts, 0, sizeof parts);
      Scales::put_unit(unit, c, parts);
      for (int b = 0; b < blocks; ++b) Scales::put_block(unit + block_at(b), c, b, parts);
      for (int b = 0; b < blocks; ++b)
        for (int s = 0; s < 8; ++s) std::memcpy(&words[b][s][c], parts.code + 32 * b + 4 * s, 4);
    }
    for (int b = 0; b < blocks; ++b) Codes::put(words[b], unit + block_at(b) + Scales::block_bytes);
  }
  static constexpr std::size_t block_at(int b) {
    return Scales::unit_bytes + static_cast<std::size_t>(b) * block_bytes;
  }
};

template <dtype Weight, class S>
struct q_panel_of;
#define FLYWHEEL_Q_PANEL(type, ...)                         \
  template <class S>                                        \
  struct q_panel_of<dtype::type, S> {                       \
    using type_name = q_panel<dtype::type, S, __VA_ARGS__>; \
  };
FLYWHEEL_Q_PANEL(q4_0, nibbles<S>, f16_scales<S>, 15)
FLYWHEEL_Q_PANEL(q4_1, nibbles<S>, f16_minima<S>, 15)
FLYWHEEL_Q_PANEL(q5_0, five_bits<S>, f16_scales<S>, 31)
FLYWHEEL_Q_PANEL(q5_1, five_bits<S>, f16_minima<S>, 31)
FLYWHEEL_Q_PANEL(q8_0, whole_bytes<S>, f16_scales<S>, 255)
FLYWHEEL_Q_PANEL(iq4_nl, level_nibbles<S, iq4_levels_128>, f16_scales<S>, 241)
FLYWHEEL_Q_PANEL(mxfp4, level_nibbles<S, fp4_levels_16>, e8m0_scales<S>, 28)
FLYWHEEL_Q_PANEL(q8_g128, whole_bytes<S>, wide_scales<S>, 255)
FLYWHEEL_Q_PANEL(q4_g128, nibbles<S>, wide_scales<S>, 15)
FLYWHEEL_Q_PANEL(q4_k, nibbles<S>, k_minima<S>, 15)
FLYWHEEL_Q_PANEL(q5_k, five_bits<S>, k_minima<S>, 31)
FLYWHEEL_Q_PANEL(q6_k, six_bits<S>, k_scales_16<S>, 63, 2)
FLYWHEEL_Q_PANEL(iq4_xs, level_nibbles<S, iq4_levels_128>, k_scales_32<S>, 241)
FLYWHEEL_Q_PANEL(q2_k, two_bits<S>, k_nibbles<S>, 3, 2)
FLYWHEEL_Q_PANEL(q3_k, plus_one_bit<S, two_bits<S>, 2>, k_scales_16<S>, 7, 2)
#undef FLYWHEEL_Q_PANEL

}  // namespace
}  // namespace flywheel::inline v0::kernels
