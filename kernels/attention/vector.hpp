// Attention over `simd` vectors. The rows (tokens x heads of the group) walk over the pages together, so that a page is
// converted once for all of them, in tiles of up to eight, so that what is loaded is used several times. What a page is
// made of is known to float_pages and integer_pages. Include after one simd_*.hpp.
#pragma once

#include <type_traits>

#include "kernels/attention/attention.hpp"
#include "kernels/attention/float_pages.hpp"
#include "kernels/attention/integer_pages.hpp"
#include "kernels/attention/rotation.hpp"
#include "kernels/declare.hpp"
#include "kernels/vector_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

struct seen_bound_table {
  float values[3 * kv_page_tokens] = {};
  constexpr seen_bound_table() {
    for (float& x : values) x = -__builtin_huge_valf();
    for (std::int64_t i = kv_page_tokens; i < 2 * kv_page_tokens; ++i) values[i] = __builtin_huge_valf();
  }
};
/// A page of -infinity, one of infinity, one of -infinity: the minimum with what begins at kv_page_tokens - low hides
/// positions below `low`, with what begins at 2 kv_page_tokens - high those from `high` on.
alignas(64) constexpr seen_bound_table seen_bounds;

template <class S>
struct paged_attention {
  using V = typename S::floats;
  static constexpr std::int64_t page = kv_page_tokens;
  static constexpr int width = S::width;
  static constexpr int max_tile = S::registers >= 32 ? 8 : 6;  ///< Rows whose sums fit the registers, two vectors each.
  static constexpr int tile_floats = (max_tile + width - 1) / width * width;
  static constexpr std::int64_t row_group = 128;  ///< Rows that walk over the pages together.
  static constexpr float log2e = exp_log2e;

  static constexpr std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
  static constexpr std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

  template <dtype Type>
  using pages =
      std::conditional_t<is_quantized_kv(Type) && has_integer_pages<S>, integer_pages<S, Type>, float_pages<S, Type>>;

  /// What a group of rows carries from page to page. Scores are in units of log2(e), so that weights are powers of 2.
  struct rows_state {
    float* out;  ///< [row_group, head_dim], not yet divided by the denominator
    float* sum;  ///< [row_group, width]: the denominator's parts
    float* p;    ///< [max_tile, page]
    float peak[row_group];
  };

  template <dtype Type>
  static std::int64_t scratch_of(std::int64_t dim) {
    return row_group * (dim + width) + max_tile * page + pages<Type>::scratch(dim, row_group);
  }

  /// Scores p[R][page] of rows [row, row + R), of which positions [low, high) count, to powers of 2 relative to the
  /// peak, and 0 elsewhere. How much of the sums so far (correction) and of the page's (gain) counts from now on.
  template <int R, bool LocalPeaks>
  [[gnu::noinline]] static void soften(const attention_args& args, rows_state& s, std::int64_t row, std::int64_t low,
                                       std::int64_t high, float* correction, float* gain) {
    // As far as products look, in pairs of vectors.
    const std::int64_t begin = low / (2 * width) * (2 * width);
    const std::int64_t end = (high + 2 * width - 1) / (2 * width) * (2 * width);
    float page_peak[tile_floats] = {}, before[tile_floats] = {};
    for (int r = 0; r < R; ++r) {
      float* const p = s.p + r * page;
      if (args.softcap > 0) {
        const V cap = S::set1(args.softcap * log2e);
        for (std::int64_t i = begin; i < end; i += width)
          S::store(p + i, S::mul(cap, tanh_vector<S>(S::div(S::load(p + i), cap))));
      }
      if (low > 0 || high < page)
        for (std::int64_t i = begin; i < end; i += width) {
          // Where one operand is NaN, the bound: what is not seen may hold anything.
          const V above = S::min(S::load(p + i), S::load(seen_bounds.values + page - low + i));
          S::store(p + i, S::min(above, S::load(seen_bounds.values + 2 * page - high + i)));
        }
      V most_of = S::load(p + begin);
      for (std::int64_t i = begin + width; i < end; i += width) most_of = S::max(most_of, S::load(p + i));
      page_peak[r] = S::largest(most_of);
      before[r] = s.peak[row + r];
    }
    float peak[tile_floats];
    for (int r = 0; r < R; r += width) {
      const V own = S::load(page_peak + r), old = S::load(before + r), now = S::max(own, old);
      S::store(peak + r, now);
      S::store(correction + r, exp2_vector<S>(S::sub(old, now)));
      S::store(gain + r, LocalPeaks ? exp2_vector<S>(S::sub(own, now)) : S::set1(1));
    }
    for (int r = 0; r < R; ++r) {
      float* const p = s.p + r * page;
      const V zero_point = S::set1(LocalPeaks ? page_peak[r] : peak[r]);
      V total = S::zero();
      for (std::int64_t i = begin; i < end; i += width) {
        const V x = exp2_vector<S>(S::sub(S::load(p + i), zero_point));
        S::store(p + i, x);
        total = S::add(total, x);
      }
      float* const sum = s.sum + (row + r) * width;
      S::store(sum, S::fma(S::load(sum), S::set1(correction[r]), S::mul(total, S::set1(gain[r]))));
      s.peak[row + r] = peak[r];
    }
  }

  /// One page for rows [begin, end), all of which see positions [low, high) of it, in tiles of nearly equal size.
  template <class Pages>
  static void tiles(const attention_args& args, Pages& pages, rows_state& s, std::int64_t begin, std::int64_t end,
                    std::int64_t low, std::int64_t high) {
    pages.see(low, high);
    for (std::int64_t n = (end - begin + max_tile - 1) / max_tile; begin < end; --n) {
      const std::int64_t rows = (end - begin + n - 1) / n;
      tile<max_tile>(args, pages, s, begin, rows, low, high);
      begin += rows;
    }
  }

  template <int R, class Pages>
  static void tile(const attention_args& args, Pages& pages, rows_state& s, std::int64_t row, std::int64_t rows,
                   std::int64_t low, std::int64_t high) {
    if constexpr (R > 1)
      if (rows < R) return tile<R - 1>(args, pages, s, row, rows, low, high);
    pages.template scores<R>(row, s.p);
    float correction[tile_floats], gain[tile_floats];
    soften<R, Pages::local_peaks>(args, s, row, low, high, correction, gain);
    pages.template add<R>(s.p, correction, gain, s.out + row * args.head_dim);
  }

  /// Rows [begin, end) of the flattened [token, head of the group].
  template <class Pages>
  static void walk(const attention_args& args, std::int64_t kv_head, std::int64_t begin, std::int64_t end, Pages& pages,
                   rows_state& s) {
    const std::int64_t dim = args.head_dim;
    const std::int64_t group = args.n_heads / args.n_kv_heads;
    const auto position = [&](std::int64_t row) { return args.first_position + row / group; };
    const auto first_seen = [&](std::int64_t row) {
      return args.window > 0 ? most(0, position(row) - args.window + 1) : 0;
    };
    const auto output = [&](std::int64_t row) {
      return args.out + row / group * args.out_stride + (kv_head * group + row % group) * dim;
    };
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t head = kv_head * group + row % group, r = row - begin;
      for (std::int64_t d = 0; d < dim; d += 16) S::prefetch_far(output(row) + d);
      pages.set_query(r, args.q + row / group * args.q_stride + head * dim, args.scale * log2e);
      for (std::int64_t d = 0; d < dim; ++d) s.out[r * dim + d] = 0;
      for (int i = 0; i < width; ++i) s.sum[r * width + i] = 0;
      if (args.sinks) s.sum[r * width] = 1;
      s.peak[r] = args.sinks ? args.sinks[head] * log2e : -__builtin_huge_valf();
    }
    const std::int64_t last_page = position(end - 1) / page;
    for (std::int64_t block = first_seen(begin) / page; block <= last_page; ++block) {
      pages.open(args.kv_pages[block], args.kv_pages[block < last_page ? block + 1 : block]);
      const std::int64_t start = block * page;
      if (first_seen(end - 1) <= start && position(begin) >= start + page - 1) {
        tiles(args, pages, s, 0, end - begin, 0, page);
        continue;
      }
      // Rows of different tokens see different parts: token by token.
      for (std::int64_t row = begin; row < end;) {
        const std::int64_t stop = least(end, (row / group + 1) * group);
        const std::int64_t low = most(0, first_seen(row) - start);
        const std::int64_t high = least(page, position(row) + 1 - start);
        if (low < high) tiles(args, pages, s, row - begin, stop - begin, low, high);
        row = stop;
      }
    }
    for (std::int64_t row = begin; row < end; ++row) {
      const float inverse = 1 / S::sum(S::load(s.sum + (row - begin) * width));
      float* const out = output(row);
      for (std::int64_t d = 0; d < dim; ++d) out[d] = s.out[(row - begin) * dim + d] * inverse;
      if (is_quantized_kv(args.kv_type)) rotate_head(out, dim);
    }
  }

  template <dtype Type>
  static void run_type(const attention_args& args, std::int64_t kv_head, std::int64_t token_begin,
                       std::int64_t token_end, float* scratch) {
    const std::int64_t group = args.n_heads / args.n_kv_heads;
    rows_state s;
    s.out = scratch;
    s.sum = s.out + row_group * args.head_dim;
    s.p = s.sum + row_group * width;
    pages<Type> own(args, kv_head, row_group, s.p + max_tile * page);
    for (std::int64_t begin = token_begin * group; begin < token_end * group; begin += row_group)
      walk(args, kv_head, begin, least(begin + row_group, token_end * group), own, s);
  }

  static std::size_t scratch(const attention_args& args) {
    std::int64_t n = 0;
    switch (args.kv_type) {
      case dtype::f32:
        n = scratch_of<dtype::f32>(args.head_dim);
        break;
      case dtype::q8_0:
        n = scratch_of<dtype::q8_0>(args.head_dim);
        break;
      case dtype::q4_0:
        n = scratch_of<dtype::q4_0>(args.head_dim);
        break;
      default:
        n = scratch_of<dtype::f16>(args.head_dim);
    }
    return static_cast<std::size_t>(n);
  }

  static void run(const attention_args& args, std::int64_t kv_head, std::int64_t token_begin, std::int64_t token_end,
                  float* scratch) {
    switch (args.kv_type) {
      case dtype::f32:
        return run_type<dtype::f32>(args, kv_head, token_begin, token_end, scratch);
      case dtype::q8_0:
        return run_type<dtype::q8_0>(args, kv_head, token_begin, token_end, scratch);
      case dtype::q4_0:
        return run_type<dtype::q4_0>(args, kv_head, token_begin, token_end, scratch);
      default:
        return run_type<dtype::f16>(args, kv_head, token_begin, token_end, scratch);
    }
  }

  static void store_kv(const store_kv_args& args, std::int64_t kv_head) {
    if (args.kv_type != dtype::f16) return store_kv_generic(args, kv_head);
    const std::int64_t dim = args.head_dim;
    for (std::int64_t t = 0; t < args.n_tokens; ++t) {
      const std::int64_t slot = (args.first_position + t) % page;
      std::byte* const base = args.kv_pages[(args.first_position + t) / page];
      std::byte* k_out = base + 2 * (kv_head * page * dim + slot);
      std::byte* const v_out = base + 2 * ((args.n_kv_heads + kv_head) * page + slot) * dim;
      const float* const k = args.k + t * args.k_stride + kv_head * dim;
      const float* const v = args.v + t * args.v_stride + kv_head * dim;
      for (std::int64_t d = 0; d < dim; ++d, k_out += 2 * page) {
        const std::uint16_t half = f32_to_f16_one(k[d]);
        __builtin_memcpy(k_out, &half, 2);
      }
      std::int64_t i = 0;
      for (; i + width <= dim; i += width) S::store_f16(v_out + 2 * i, S::load(v + i));
      if (i < dim) S::store_f16_part(v_out + 2 * i, dim - i, S::load_part(v + i, dim - i));
    }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
