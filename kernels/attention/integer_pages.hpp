// Quantized pages for vectors with integer dot products: four or two products per lane instead of one. Include after
// one simd_*.hpp.
//
// Scores: unsigned key codes times int8 queries, exact over blocks of 32, then scaled in f32. Values: the row's weights
// times the values' scales become 16-bit numbers with a common step per block of 32 dimensions, which the sums over a
// page take exactly: 64 positions * 32767 * 128 < 2^31. The step is 1 / 32767 of the largest scale, and weights are
// relative to the page's peak, hence errors are below 2^-16 of what the page's heaviest position could contribute.
#pragma once

#include "kernels/attention/attention.hpp"
#include "kernels/attention/rotation.hpp"
#include "kernels/q8_codes.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class S>
constexpr bool has_integer_pages = requires(typename S::bytes x) {
  S::dot4(x, x, x);
  S::dot2_words(x, x, x);
};

struct seen_table {
  std::int32_t words[3 * kv_page_tokens] = {};
  constexpr seen_table() {
    for (std::int64_t i = kv_page_tokens; i < 2 * kv_page_tokens; ++i) words[i] = -1;
  }
};
/// A page of zeros, one of set bits, one of zeros.
alignas(64) constexpr seen_table seen_mask;

/// See float_pages for what is called.
template <class S, dtype Type>
class integer_pages {
  using V = typename S::floats;
  using W = typename S::bytes;
  static constexpr std::int64_t page = kv_page_tokens;
  static constexpr int width = S::width;
  static constexpr int block_vectors = 32 / width;                           ///< Of a block of dimensions.
  static constexpr std::int64_t code_bytes = Type == dtype::q8_0 ? 32 : 16;  ///< Of a block of a position's values.
  static constexpr std::int64_t key_bytes = kv_key_block_bytes(Type) - 2;    ///< Of its keys.
  static constexpr int bias = Type == dtype::q8_0 ? kv_key_bias : 16;
  static constexpr float levels = 32767;
  static_assert(32 % width == 0 && page % (2 * width) == 0);

 public:
  static constexpr bool local_peaks = true;

  static std::int64_t scratch(std::int64_t dim, std::int64_t rows) {
    const std::int64_t blocks = dim / 32;
    return page * dim / 2 + page * dim / 4 + (3 * page + 1) * blocks + rows * (dim / 4 + 2 * blocks) + width + dim;
  }

  integer_pages(const attention_args& args, std::int64_t kv_head, std::int64_t rows, float* scratch)
      : dim_(args.head_dim),
        blocks_(dim_ / 32),
        k_offset_(static_cast<std::int64_t>(kv_keys_offset(Type, dim_, kv_head))),
        v_offset_(static_cast<std::int64_t>(kv_values_offset(Type, args.n_kv_heads, dim_, kv_head))),
        values_(reinterpret_cast<std::int32_t*>(scratch)),
        wide_keys_(values_ + page * dim_ / 2),
        key_scales_(reinterpret_cast<float*>(wide_keys_ + page * dim_ / 4)),
        value_scales_(key_scales_ + page * blocks_),
        weights_(value_scales_ + page * blocks_),
        steps_(weights_ + page * blocks_),
        query_scales_(steps_ + blocks_),
        starts_(reinterpret_cast<std::int32_t*>(query_scales_ + rows * blocks_)),
        queries_(starts_ + rows * blocks_),
        turned_(reinterpret_cast<float*>(queries_ + rows * dim_ / 4)) {}

  void set_query(std::int64_t row, const float* q, float factor) {
    for (std::int64_t d = 0; d < dim_; ++d) turned_[d] = q[d];
    rotate_head(turned_, dim_);
    for (std::int64_t b = 0; b < blocks_; ++b) {
      std::int32_t codes[32];
      const q8_scale s = q8_scale_of(peak_of(turned_ + 32 * b));
      round_codes(turned_ + 32 * b, s.inverse, codes);
      std::int32_t sum = 0;
      std::int8_t bytes[32];
      for (int i = 0; i < 32; ++i) {
        sum += codes[i];
        bytes[i] = static_cast<std::int8_t>(codes[i]);
      }
      __builtin_memcpy(queries_ + row * dim_ / 4 + 8 * b, bytes, 32);
      starts_[row * blocks_ + b] = -bias * sum;
      query_scales_[row * blocks_ + b] = s.scale * factor;
    }
  }

  void open(const std::byte* from, const std::byte* next) {
    ahead_ = reinterpret_cast<std::uintptr_t>(next) - reinterpret_cast<std::uintptr_t>(from);
    const std::byte* const k = from + k_offset_;
    const std::byte* const v = from + v_offset_;
    const std::byte* const key_scales = k + page * blocks_ * key_bytes;
    const std::byte* const value_scales = v + page * blocks_ * code_bytes;
    for (std::int64_t i = 0; i < page * blocks_; i += width) {
      if (2 * i % 64 == 0) prefetch(key_scales + 2 * i), prefetch(value_scales + 2 * i);
      S::store(key_scales_ + i, S::load_f16(key_scales + 2 * i));
      S::store(value_scales_ + i, S::load_f16(value_scales + 2 * i));
    }
    if constexpr (Type == dtype::q8_0) {
      keys_ = k;
    } else {
      widen_keys(k);
      keys_ = reinterpret_cast<const std::byte*>(wide_keys_);
    }
    widen_values(v, k);
  }

  void see(std::int64_t low, std::int64_t high) {
    low_ = low;
    high_ = high;
    // Positions that are not seen may hold anything: they are cleared, not multiplied with zero.
    const std::int64_t begin = low / (2 * width) * (2 * width);
    const std::int64_t end = (high + 2 * width - 1) / (2 * width) * (2 * width);
    for (std::int64_t b = 0; b < blocks_; ++b) {
      const float* const d = value_scales_ + b * page;
      float* const w = weights_ + b * page;
      V most = S::zero();
      for (std::int64_t i = begin; i < end; i += width) {
        const W seen = S::and_bits(S::load_bytes(seen_mask.words + page - low + i),
                                   S::load_bytes(seen_mask.words + 2 * page - high + i));
        S::store_bytes(w + i, S::and_bits(seen, S::load_bytes(d + i)));
        most = S::max(most, S::abs(S::load(w + i)));
      }
      const float largest = S::largest(most);
      const V inverse = S::set1(largest > 0 ? levels / largest : 0.0f);
      for (std::int64_t i = begin; i < end; i += width) S::store(w + i, S::mul(S::load(w + i), inverse));
      steps_[b] = largest / levels;
    }
  }

  template <int R>
  [[gnu::noinline]] void scores(std::int64_t row, float* p) const {
    const std::int64_t end = (high_ + 2 * width - 1) / (2 * width) * (2 * width);
    for (std::int64_t c = low_ / (2 * width) * (2 * width); c < end; c += 2 * width)
      for (std::int64_t b = 0; b < blocks_; ++b) {
        W acc[R][2];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = S::set1_word(starts_[(row + r) * blocks_ + b]);
        const std::byte* k = keys_ + 4 * (8 * b * page + c);
        const std::int32_t* const q = queries_ + row * dim_ / 4 + 8 * b;
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i, k += 4 * page) {
          const W w[2] = {S::load_bytes(k), S::load_bytes(k + 4 * width)};
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            const W x = S::set1_word(q[r * dim_ / 4 + i]);
            acc[r][0] = S::dot4(acc[r][0], w[0], x);
            acc[r][1] = S::dot4(acc[r][1], w[1], x);
          }
        }
        const V d[2] = {S::load(key_scales_ + b * page + c), S::load(key_scales_ + b * page + c + width)};
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const V scale = S::set1(query_scales_[(row + r) * blocks_ + b]);
          float* const to = p + r * page + c;
#pragma GCC unroll 2
          for (int v = 0; v < 2; ++v) {
            const V s = S::mul(S::to_floats(acc[r][v]), d[v]);
            S::store(to + v * width, b == 0 ? S::mul(s, scale) : S::fma(s, scale, S::load(to + v * width)));
          }
        }
      }
  }

  template <int R>
  [[gnu::noinline]] void add(const float* p, const float* correction, const float* gain, float* out) const {
    // Pairs of positions: i and i + width of each 2 * width.
    const std::int64_t begin = low_ / (2 * width), end = (high_ + 2 * width - 1) / (2 * width);
    for (std::int64_t b = 0; b < blocks_; ++b) {
      alignas(64) std::int32_t pairs[R][page / 2];
      weigh<R>(p, weights_ + b * page, begin, end, pairs);
      W acc[R][block_vectors];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < block_vectors; ++v) acc[r][v] = S::set1_word(0);
      const std::int32_t* at = values_ + begin * width * dim_ + 32 * b;
#pragma GCC unroll 4
      for (std::int64_t i = begin * width; i < end * width; ++i, at += dim_) {
        W w[block_vectors];
#pragma GCC unroll 8
        for (int v = 0; v < block_vectors; ++v) w[v] = S::load_bytes(at + v * width);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const W x = S::set1_word(pairs[r][i]);
#pragma GCC unroll 8
          for (int v = 0; v < block_vectors; ++v) acc[r][v] = S::dot2_words(acc[r][v], w[v], x);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const V before = S::set1(correction[r]), step = S::set1(gain[r] * steps_[b]);
#pragma GCC unroll 8
        for (int v = 0; v < block_vectors; ++v) {
          float* const to = out + r * dim_ + 32 * b + v * width;
          S::store(to, S::fma(S::to_floats(acc[r][v]), step, S::mul(before, S::load(to))));
        }
      }
    }
  }

 private:
  void prefetch(const std::byte* p) const {
    S::prefetch_far(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(p) + ahead_));
  }

  /// round(p w) of pairs of positions in one word each.
  template <int R>
  static void weigh(const float* p, const float* w, std::int64_t begin, std::int64_t end,
                    std::int32_t (*pairs)[page / 2]) {
    // The integer is in the low bits of the sum with round_magic.
    const V magic = S::set1(round_magic);
    const W low_half = S::set1_word(0xffff);
    for (std::int64_t i = begin; i < end; ++i) {
      const V w0 = S::load(w + 2 * width * i), w1 = S::load(w + 2 * width * i + width);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const float* const from = p + r * page + 2 * width * i;
        const W a = S::as_words(S::fma(S::load(from), w0, magic));
        const W b = S::as_words(S::fma(S::load(from + width), w1, magic));
        S::store_bytes(pairs[r] + i * width, S::merge(S::template shift_words<-16>(b), a, low_half));
      }
    }
  }

  /// q4_0: a line of 4 bytes per position becomes two lines of 4 codes, with bits `Line` and `Line` + 4 of each byte of
  /// `fifths`.
  template <int Line>
  static void widen_line(const std::byte* from, W fifths, std::byte* to) {
    const W low_bits = S::set1_byte(15), fifth = S::set1_byte(16);
    const W x = S::load_bytes(from + 4 * page * Line);
    to += 4 * page * Line;
    S::store_bytes(to, S::merge(S::and_bits(S::template shift_words<Line - 4>(fifths), fifth), x, low_bits));
    S::store_bytes(to + 16 * page, S::merge(S::and_bits(S::template shift_words<Line>(fifths), fifth),
                                            S::template shift_words<4>(x), low_bits));
  }
  void widen_keys(const std::byte* from) const {
    std::byte* to = reinterpret_cast<std::byte*>(wide_keys_);
    // widen_values() asks for as much of the next page's keys as there are values.
    for (std::int64_t i = page * blocks_ * code_bytes; i < page * blocks_ * key_bytes; i += 64) prefetch(from + i);
    for (std::int64_t b = 0; b < blocks_; ++b, from += page * key_bytes, to += 32 * page)
      for (std::int64_t i = 0; i < 4 * page; i += 4 * width) {
        const W fifths = S::load_bytes(from + 16 * page + i);
        widen_line<0>(from + i, fifths, to + i);
        widen_line<1>(from + i, fifths, to + i);
        widen_line<2>(from + i, fifths, to + i);
        widen_line<3>(from + i, fifths, to + i);
      }
  }

  /// Two positions' codes of 16 bits in each word; asks for the next page's keys and values on the way.
  void widen_values(const std::byte* from, const std::byte* keys) const {
    const std::int64_t row = blocks_ * code_bytes;
    std::int32_t* to = values_;
    std::int64_t asked = 0;
    for (std::int64_t chunk = 0; chunk < page; chunk += 2 * width)
      for (std::int64_t i = chunk; i < chunk + width; ++i, to += dim_) {
        const std::byte* const a = from + i * row;
        const std::byte* const b = a + width * row;
        for (const std::int64_t stop = asked + 2 * row; asked < stop; asked += 64)
          prefetch(from + asked), prefetch(keys + asked);
        for (std::int64_t block = 0; block < blocks_; ++block)
          for (int j = 0; j < 32; j += width)
            S::store_bytes(to + 32 * block + j,
                           merged(code(a + block * code_bytes, j), code(b + block * code_bytes, j)));
      }
  }
  static W merged(W low, W high) { return S::merge(S::template shift_words<-16>(high), low, S::set1_word(0xffff)); }
  static W code(const std::byte* from, int j) {
    if constexpr (Type == dtype::q8_0) return S::load_i8_words(from + j);
    const W x = S::load_i8_words(from + j % 16);
    const W nibble = S::and_bits(j < 16 ? x : S::template shift_words<4>(x), S::set1_word(15));
    return S::add_words(nibble, S::set1_word(-8));
  }

  std::int64_t dim_, blocks_, k_offset_, v_offset_;
  std::int32_t* values_;     ///< [page / 2, dim]: two positions' codes each
  std::int32_t* wide_keys_;  ///< [dim / 4, page]: four codes each; q4_0 only
  float* key_scales_;        ///< [blocks, page]
  float* value_scales_;      ///< [blocks, page]
  float* weights_;           ///< [blocks, page]: value_scales in units of steps, 0 where not seen
  float* steps_;             ///< [blocks]
  float* query_scales_;      ///< [rows, blocks]
  std::int32_t* starts_;     ///< [rows, blocks]: -bias times the sum of the query's codes
  std::int32_t* queries_;    ///< [rows, dim / 4]: four codes each
  float* turned_;            ///< [dim]: a query while it is rotated
  const std::byte* keys_ = nullptr;
  std::uintptr_t ahead_ = 0;  ///< From the page to the one after it.
  std::int64_t low_ = 0, high_ = 0;
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
