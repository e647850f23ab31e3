// Pages of any type as f32, for attention over `simd` vectors: keys and values of a page are converted once for all
// rows (tokens x heads of the group) that walk over it together, then they are two small products per tile of rows,
// scores = q K and out += p V. Include after one simd_*.hpp.
#pragma once

#include "kernels/attention/attention.hpp"
#include "kernels/attention/rotation.hpp"
#include "kernels/q8_codes.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// What every kind of pages offers to paged_attention:
///   local_peaks             whether weights are taken relative to the page's peak or the row's
///   scratch(dim, rows)      floats of scratch
///   set_query(row, q, f)    the query of a row, to be multiplied with f
///   open(page, next)        the page that the following calls are about; `next` will be opened after it
///   see(low, high)          the positions that the following calls are about
///   scores<R>(row, p)       p[R][page]: of rows [row, row + R), at least positions [low, high)
///   add<R>(p, correction, gain, out)   out[R][dim] = correction[R] out + gain[R] p V for p[R][page]
/// The last two are not inlined: inside other code compilers find too few registers for their sums.
template <class S, dtype Type>
class float_pages {
  using V = typename S::floats;
  using W = typename S::bytes;
  static constexpr std::int64_t page = kv_page_tokens;
  static constexpr int width = S::width;
  static constexpr bool quantized = is_quantized_kv(Type);
  static constexpr std::int64_t code_bytes = Type == dtype::q8_0 ? 32 : 16;  ///< Of a block.

 public:
  static constexpr bool local_peaks = false;

  static std::int64_t scratch(std::int64_t dim, std::int64_t rows) {
    return rows * dim + (Type == dtype::f32 ? 0 : 2 * page * dim);
  }

  float_pages(const attention_args& args, std::int64_t kv_head, std::int64_t rows, float* scratch)
      : dim_(args.head_dim),
        k_offset_(static_cast<std::int64_t>(kv_keys_offset(Type, dim_, kv_head))),
        v_offset_(static_cast<std::int64_t>(kv_values_offset(Type, args.n_kv_heads, dim_, kv_head))),
        q_(scratch),
        k_(q_ + rows * dim_),
        v_(k_ + page * dim_) {}

  void set_query(std::int64_t row, const float* q, float factor) {
    float* const to = q_ + row * dim_;
    if constexpr (quantized) {
      for (std::int64_t d = 0; d < dim_; ++d) to[d] = q[d];
      rotate_head(to, dim_);
      for (std::int64_t b = 0; b < dim_; b += 32) {
        std::int32_t codes[32];
        const q8_scale s = q8_scale_of(peak_of(to + b));
        round_codes(to + b, s.inverse, codes);
        for (int i = 0; i < 32; ++i) to[b + i] = static_cast<float>(codes[i]) * (s.scale * factor);
      }
    } else {
      for (std::int64_t d = 0; d < dim_; ++d) to[d] = q[d] * factor;
    }
  }

  void open(const std::byte* from, const std::byte* next) {
    const std::byte* const k = from + k_offset_;
    const std::byte* const v = from + v_offset_;
    ahead_ = reinterpret_cast<std::uintptr_t>(next) - reinterpret_cast<std::uintptr_t>(from);
    if constexpr (Type == dtype::f32) {
      keys_ = reinterpret_cast<const float*>(k);
      values_ = reinterpret_cast<const float*>(v);
      for (std::int64_t i = 0; i < 4 * page * dim_; i += 64) prefetch(k + i), prefetch(v + i);
    } else {
      if constexpr (Type == dtype::f16) {
        widen(k, k_);
        widen(v, v_);
      } else {
        widen_keys(k);
        widen_values(v);
      }
      keys_ = k_;
      values_ = v_;
    }
  }

  void see(std::int64_t low, std::int64_t high) {
    low_ = low;
    high_ = high;
  }

  template <int R>
  [[gnu::noinline]] void scores(std::int64_t row, float* p) const {
    // All vectors of columns that hold a seen position: columns are independent of each other.
    const std::int64_t end = (high_ + 2 * width - 1) / (2 * width) * (2 * width);
    for (std::int64_t c = low_ / (2 * width) * (2 * width); c < end; c += 2 * width)
      multiply<R, 2>(q_ + row * dim_, dim_, keys_ + c, page, dim_, 2 * width, nullptr, p + c, page);
  }

  template <int R>
  [[gnu::noinline]] void add(const float* p, const float* correction, const float* /*gain*/, float* out) const {
    const float* const v = values_ + low_ * dim_;
    std::int64_t c = 0;
    for (; c + 2 * width <= dim_; c += 2 * width)
      multiply<R, 2>(p + low_, page, v + c, dim_, high_ - low_, 2 * width, correction, out + c, dim_);
    for (; c < dim_; c += width)
      multiply<R, 1>(p + low_, page, v + c, dim_, high_ - low_, dim_ - c < width ? dim_ - c : width, correction,
                     out + c, dim_);
  }

 private:
  void prefetch(const std::byte* p) const {
    // As numbers: the two pages are different objects.
    S::prefetch_far(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(p) + ahead_));
  }

  void widen(const std::byte* from, float* to) const {
    for (std::int64_t i = 0; i < page * dim_; i += 32) {
      prefetch(from + 2 * i);
      for (std::int64_t j = i; j < i + 32; j += width) S::store(to + j, S::load_f16(from + 2 * j));
    }
  }

  /// One of the four codes in each 32-bit word of q8_0 keys, times the scales.
  template <int Shift>
  static void put_key(W words, V scale, float* to) {
    const V code = S::to_floats(S::and_bits(S::template shift_words<Shift>(words), S::set1_word(255)));
    S::store(to, S::mul(S::sub(code, S::set1(kv_key_bias)), scale));
  }
  /// One of the eight codes in each word of q4_0 keys: four bits from `Shift` on, and bit `Bit` of `fifths`.
  template <int Shift, int Bit>
  static void put_key(W words, W fifths, V scale, float* to) {
    const W high = S::and_bits(S::template shift_words<Bit - 4>(fifths), S::set1_word(16));
    const W code = S::merge(high, S::template shift_words<Shift>(words), S::set1_word(15));
    S::store(to, S::mul(S::sub(S::to_floats(code), S::set1(16)), scale));
  }
  /// Line `Line` of a block of q4_0 keys.
  template <int Line>
  void put_line(const std::byte* from, W fifths, V scale, float* to) const {
    const W words = S::load_bytes(from + 4 * page * Line);
    to += 4 * Line * page;
    put_key<0, Line>(words, fifths, scale, to);
    put_key<8, 8 + Line>(words, fifths, scale, to + page);
    put_key<16, 16 + Line>(words, fifths, scale, to + 2 * page);
    put_key<24, 24 + Line>(words, fifths, scale, to + 3 * page);
    put_key<4, 4 + Line>(words, fifths, scale, to + 16 * page);
    put_key<12, 12 + Line>(words, fifths, scale, to + 17 * page);
    put_key<20, 20 + Line>(words, fifths, scale, to + 18 * page);
    put_key<28, 28 + Line>(words, fifths, scale, to + 19 * page);
  }

  void widen_keys(const std::byte* from) const {
    constexpr std::int64_t block = page * static_cast<std::int64_t>(kv_key_block_bytes(Type) - 2);
    const std::byte* const scales = from + dim_ / 32 * block;
    for (std::int64_t b = 0; b < dim_ / 32; ++b, from += block) {
      for (std::int64_t i = 0; i < block; i += 64) prefetch(from + i);
      for (std::int64_t i = 0; i < page; i += width) {
        const V scale = S::load_f16(scales + 2 * (b * page + i));
        const std::byte* const at = from + 4 * i;
        float* to = k_ + 32 * b * page + i;
        if constexpr (Type == dtype::q8_0) {
          for (std::int64_t line = 0; line < 8; ++line, to += 4 * page) {
            const W words = S::load_bytes(at + 4 * page * line);
            put_key<0>(words, scale, to);
            put_key<8>(words, scale, to + page);
            put_key<16>(words, scale, to + 2 * page);
            put_key<24>(words, scale, to + 3 * page);
          }
        } else {
          const W fifths = S::load_bytes(at + 16 * page);
          put_line<0>(at, fifths, scale, to);
          put_line<1>(at, fifths, scale, to);
          put_line<2>(at, fifths, scale, to);
          put_line<3>(at, fifths, scale, to);
        }
      }
    }
  }

  void widen_values(const std::byte* from) const {
    const std::byte* const scales = from + page * dim_ / 32 * code_bytes;
    for (std::int64_t i = 0; i < page; ++i)
      for (std::int64_t b = 0; b < dim_ / 32; ++b, from += code_bytes) {
        std::uint16_t half;
        __builtin_memcpy(&half, scales + 2 * (b * page + i), 2);
        const V scale = S::set1(f16_to_f32(half));
        float* const to = v_ + i * dim_ + 32 * b;
        prefetch(from);
        for (int j = 0; j < 32; j += width) {
          V code;
          if constexpr (Type == dtype::q8_0)
            code = S::load_i8(from + j);
          else
            code = S::sub(S::load_u4(from + j % 16, j >= 16), S::set1(8));
          S::store(to + j, S::mul(code, scale));
        }
      }
  }

  /// out[r][c] = factor[r] * out[r][c] + sum over k of a[r][k] * b[k][c] for R rows and `columns` <= NV * width columns
  /// (fewer than that only for NV = 1); without factor: of 0. The sum over k is one chain per element: a row's result
  /// does not depend on R.
  template <int R, int NV>
  static void multiply(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t k,
                       std::int64_t columns, const float* factor, float* out, std::int64_t out_stride) {
    const bool part = NV == 1 && columns < width;
    V acc[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const float* const from = out + r * out_stride + v * width;
        if (factor)
          acc[r][v] = S::mul(S::set1(factor[r]), part ? S::load_part(from, columns) : S::load(from));
        else
          acc[r][v] = S::zero();
      }
    for (std::int64_t i = 0; i < k; ++i, b += b_stride) {
      V w[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) w[v] = part ? S::load_part(b, columns) : S::load(b + v * width);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const V x = S::set1(a[r * a_stride + i]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[r][v] = S::fma(x, w[v], acc[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        float* const to = out + r * out_stride + v * width;
        part ? S::store_part(to, columns, acc[r][v]) : S::store(to, acc[r][v]);
      }
  }

  std::int64_t dim_, k_offset_, v_offset_;
  float* q_;  ///< [rows, dim]
  float* k_;  ///< [dim, page]
  float* v_;  ///< [page, dim]
  const float* keys_ = nullptr;
  const float* values_ = nullptr;
  std::uintptr_t ahead_ = 0;  ///< From the page to the one after it.
  std::int64_t low_ = 0, high_ = 0;
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
