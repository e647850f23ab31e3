// Attention over `simd` vectors: two small products per page, scores = q K and out += p V, with the rows (tokens x
// heads of the group) in tiles of up to six, so that keys and values are read and converted once per tile. Include
// after one simd_*.hpp.
#pragma once

#include "kernels/attention/attention.hpp"
#include "kernels/vector_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class S>
struct paged_attention {
  using V = typename S::floats;
  static constexpr std::int64_t page = kv_page_tokens;
  static constexpr int width = S::width;
  static constexpr int vectors = S::registers / 8;  ///< Of columns per pass: six rows of them fit the registers.
  static constexpr std::int64_t max_tile = 6;
  static constexpr std::int64_t row_group = 32;  ///< Rows that walk over the pages together.

  static constexpr std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
  static constexpr std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

  struct f16_numbers {
    static constexpr std::int64_t bytes = 2;
    static V load(const std::byte* p) { return S::load_f16(p); }
    static V load_part(const std::byte* p, std::int64_t n) { return S::load_f16_part(p, n); }
    static void store_one(std::byte* p, float x) {
      const std::uint16_t half = f32_to_f16_one(x);
      __builtin_memcpy(p, &half, 2);
    }
    static void store_row(std::byte* p, const float* x, std::int64_t n) {
      std::int64_t i = 0;
      for (; i + width <= n; i += width) S::store_f16(p + 2 * i, S::load(x + i));
      if (i < n) S::store_f16_part(p + 2 * i, n - i, S::load_part(x + i, n - i));
    }
  };
  struct f32_numbers {
    static constexpr std::int64_t bytes = 4;
    static V load(const std::byte* p) { return S::load(reinterpret_cast<const float*>(p)); }
    static V load_part(const std::byte* p, std::int64_t n) {
      return S::load_part(reinterpret_cast<const float*>(p), n);
    }
    static void store_one(std::byte* p, float x) { __builtin_memcpy(p, &x, 4); }
    static void store_row(std::byte* p, const float* x, std::int64_t n) {
      __builtin_memcpy(p, x, static_cast<std::size_t>(n) * 4);
    }
  };

  /// out[r][c] = factor[r] * out[r][c] + sum over k of a[r][k] * b[k][c] for R rows and `columns` <= NV * width columns
  /// (fewer than that only for NV = 1). Strides in elements. The sum over k is one chain per element: a row's result
  /// does not depend on R. Prefetches `next` at b's offsets.
  template <class Number, int R, int NV>
  static void multiply(const float* a, std::int64_t a_stride, const std::byte* b, std::int64_t b_stride, std::int64_t k,
                       std::int64_t columns, const float* factor, float* out, std::int64_t out_stride,
                       const std::byte* next) {
    const bool part = NV == 1 && columns < width;
    V acc[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        float* const from = out + r * out_stride + v * width;
        if (factor)
          acc[r][v] = S::mul(S::set1(factor[r]), part ? S::load_part(from, columns) : S::load(from));
        else
          acc[r][v] = S::zero();
      }
    const std::int64_t step = b_stride * Number::bytes;
    // As numbers: the two pages are different objects.
    const std::uintptr_t distance = reinterpret_cast<std::uintptr_t>(next) - reinterpret_cast<std::uintptr_t>(b);
    for (std::int64_t i = 0; i < k; ++i, b += step) {
      V w[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const std::byte* const from = b + v * width * Number::bytes;
        w[v] = part ? Number::load_part(from, columns) : Number::load(from);
        if (v * width * Number::bytes % 64 == 0)
          S::prefetch_far(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(from) + distance));
      }
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

  /// multiply() for any number of columns.
  template <class Number, int R>
  static void multiply_columns(const float* a, std::int64_t a_stride, const std::byte* b, std::int64_t b_stride,
                               std::int64_t k, std::int64_t columns, const float* factor, float* out,
                               std::int64_t out_stride, const std::byte* next) {
    std::int64_t c = 0;
    for (; c + vectors * width <= columns; c += vectors * width)
      multiply<Number, R, vectors>(a, a_stride, b + c * Number::bytes, b_stride, k, vectors * width, factor, out + c,
                                   out_stride, next + c * Number::bytes);
    for (; c < columns; c += width)
      multiply<Number, R, 1>(a, a_stride, b + c * Number::bytes, b_stride, k, least(width, columns - c), factor,
                             out + c, out_stride, next + c * Number::bytes);
  }

  /// What a group of rows carries from page to page, in the caller's scratch.
  struct rows_state {
    float* q;    ///< [row_group, head_dim], times the scale
    float* out;  ///< [row_group, head_dim], not yet divided by the denominator
    float* p;    ///< [row_group, page]
    float peak[row_group];
    float denominator[row_group];
  };

  static std::size_t scratch(const attention_args& args) {
    return static_cast<std::size_t>(row_group * (2 * args.head_dim + page));
  }

  /// Scores of row r, of which positions [low, high) count, to exp(score - peak); returns what the row's sums so far
  /// must be multiplied with.
  static float soften(const attention_args& args, rows_state& s, std::int64_t r, std::int64_t low, std::int64_t high) {
    float* const p = s.p + r * page;
    if (args.softcap > 0) {
      const V cap = S::set1(args.softcap);
      for (std::int64_t i = 0; i < page; i += width)
        S::store(p + i, S::mul(cap, tanh_vector<S>(S::div(S::load(p + i), cap))));
    }
    for (std::int64_t i = 0; i < low; ++i) p[i] = -__builtin_huge_valf();
    for (std::int64_t i = high; i < page; ++i) p[i] = -__builtin_huge_valf();
    V most_of = S::load(p);
    for (std::int64_t i = width; i < page; i += width) most_of = S::max(most_of, S::load(p + i));
    const float page_peak = S::largest(most_of);
    const float peak = page_peak > s.peak[r] ? page_peak : s.peak[r];
    V total = S::zero();
    for (std::int64_t i = 0; i < page; i += width) {
      const V x = exp_vector<S>(S::sub(S::load(p + i), S::set1(peak)));
      S::store(p + i, x);
      total = S::add(total, x);
    }
    const float correction = exp_f32(s.peak[r] - peak);
    s.denominator[r] = __builtin_fmaf(s.denominator[r], correction, S::sum(total));
    s.peak[r] = peak;
    return correction;
  }

  /// One page for rows [r, r + R), all of which see positions [low, high) of it.
  template <class Number, int R>
  static void tile(const attention_args& args, rows_state& s, std::int64_t r, const std::byte* k, const std::byte* v,
                   std::int64_t low, std::int64_t high, const std::byte* next_k, const std::byte* next_v) {
    const std::int64_t dim = args.head_dim;
    multiply_columns<Number, R>(s.q + r * dim, dim, k, page, dim, page, nullptr, s.p + r * page, page, next_k);
    float correction[R];
    for (int i = 0; i < R; ++i) correction[i] = soften(args, s, r + i, low, high);
    const std::int64_t skip = low * dim * Number::bytes;
    multiply_columns<Number, R>(s.p + r * page + low, page, v + skip, dim, high - low, dim, correction, s.out + r * dim,
                                dim, next_v + skip);
  }

  /// One page for rows [begin, end), in tiles of nearly equal size.
  template <class Number>
  static void tiles(const attention_args& args, rows_state& s, std::int64_t begin, std::int64_t end, const std::byte* k,
                    const std::byte* v, std::int64_t low, std::int64_t high, const std::byte* next_k,
                    const std::byte* next_v) {
    for (std::int64_t n = (end - begin + max_tile - 1) / max_tile; begin < end; --n) {
      const std::int64_t rows = (end - begin + n - 1) / n;
      switch (rows) {
        case 1:
          tile<Number, 1>(args, s, begin, k, v, low, high, next_k, next_v);
          break;
        case 2:
          tile<Number, 2>(args, s, begin, k, v, low, high, next_k, next_v);
          break;
        case 3:
          tile<Number, 3>(args, s, begin, k, v, low, high, next_k, next_v);
          break;
        case 4:
          tile<Number, 4>(args, s, begin, k, v, low, high, next_k, next_v);
          break;
        case 5:
          tile<Number, 5>(args, s, begin, k, v, low, high, next_k, next_v);
          break;
        default:
          tile<Number, 6>(args, s, begin, k, v, low, high, next_k, next_v);
          break;
      }
      begin += rows;
      next_k = k;  // one prefetch of the next page is enough
      next_v = v;
    }
  }

  /// Rows [begin, end) of the flattened [token, head of the group].
  template <class Number>
  static void walk(const attention_args& args, std::int64_t kv_head, std::int64_t begin, std::int64_t end,
                   rows_state& s) {
    const std::int64_t dim = args.head_dim;
    const std::int64_t group = args.n_heads / args.n_kv_heads;
    const std::int64_t k_offset = kv_head * page * dim * Number::bytes;
    const std::int64_t v_offset = (args.n_kv_heads + kv_head) * page * dim * Number::bytes;
    const auto position = [&](std::int64_t row) { return args.first_position + row / group; };
    const auto first_seen = [&](std::int64_t row) {
      return args.window > 0 ? most(0, position(row) - args.window + 1) : 0;
    };
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t head = kv_head * group + row % group;
      const float* q = args.q + row / group * args.q_stride + head * dim;
      for (std::int64_t d = 0; d < dim; ++d) {
        s.q[(row - begin) * dim + d] = q[d] * args.scale;
        s.out[(row - begin) * dim + d] = 0;
      }
      s.peak[row - begin] = args.sinks ? args.sinks[head] : -__builtin_huge_valf();
      s.denominator[row - begin] = args.sinks ? 1.0f : 0.0f;
    }
    const std::int64_t last_page = position(end - 1) / page;
    for (std::int64_t block = first_seen(begin) / page; block <= last_page; ++block) {
      const std::byte* k = args.kv_pages[block] + k_offset;
      const std::byte* v = args.kv_pages[block] + v_offset;
      const std::byte* next = args.kv_pages[block < last_page ? block + 1 : block];
      const std::int64_t start = block * page;
      if (first_seen(end - 1) <= start && position(begin) >= start + page - 1) {
        tiles<Number>(args, s, 0, end - begin, k, v, 0, page, next + k_offset, next + v_offset);
        continue;
      }
      // Rows of different tokens see different parts: token by token.
      for (std::int64_t row = begin; row < end;) {
        const std::int64_t stop = least(end, (row / group + 1) * group);
        const std::int64_t low = most(0, first_seen(row) - start);
        const std::int64_t high = least(page, position(row) + 1 - start);
        if (low < high)
          tiles<Number>(args, s, row - begin, stop - begin, k, v, low, high, next + k_offset, next + v_offset);
        row = stop;
      }
    }
    for (std::int64_t row = begin; row < end; ++row) {
      const float inverse = 1 / s.denominator[row - begin];
      float* out = args.out + row / group * args.out_stride + (kv_head * group + row % group) * dim;
      for (std::int64_t d = 0; d < dim; ++d) out[d] = s.out[(row - begin) * dim + d] * inverse;
    }
  }

  static void run(const attention_args& args, std::int64_t kv_head, std::int64_t token_begin, std::int64_t token_end,
                  float* scratch) {
    const std::int64_t group = args.n_heads / args.n_kv_heads;
    rows_state s;
    s.q = scratch;
    s.out = s.q + row_group * args.head_dim;
    s.p = s.out + row_group * args.head_dim;
    for (std::int64_t begin = token_begin * group; begin < token_end * group; begin += row_group) {
      const std::int64_t end = least(begin + row_group, token_end * group);
      if (args.kv_type == dtype::f16)
        walk<f16_numbers>(args, kv_head, begin, end, s);
      else
        walk<f32_numbers>(args, kv_head, begin, end, s);
    }
  }

  template <class Number>
  static void store_tokens(const store_kv_args& args, std::int64_t kv_head) {
    const std::int64_t dim = args.head_dim;
    for (std::int64_t t = 0; t < args.n_tokens; ++t) {
      const std::int64_t slot = (args.first_position + t) % page;
      std::byte* const base = args.kv_pages[(args.first_position + t) / page];
      std::byte* k_out = base + (kv_head * page * dim + slot) * Number::bytes;
      std::byte* v_out = base + ((args.n_kv_heads + kv_head) * page + slot) * dim * Number::bytes;
      const float* k = args.k + t * args.k_stride + kv_head * dim;
      for (std::int64_t d = 0; d < dim; ++d, k_out += page * Number::bytes) Number::store_one(k_out, k[d]);
      Number::store_row(v_out, args.v + t * args.v_stride + kv_head * dim, dim);
    }
  }

  static void store_kv(const store_kv_args& args, std::int64_t kv_head) {
    if (args.kv_type == dtype::f16)
      store_tokens<f16_numbers>(args, kv_head);
    else
      store_tokens<f32_numbers>(args, kv_head);
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
