// Portable attention: a page of keys or values at a time is converted to f32 once for all rows (tokens x heads of the
// group).
#include <cmath>
#include <cstring>

#include "flywheel/formats/q4_0.hpp"
#include "flywheel/formats/q5_0.hpp"
#include "flywheel/formats/q8_0.hpp"
#include "kernels/attention/rotation.hpp"
#include "kernels/declare.hpp"
#include "kernels/q8_codes.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

constexpr std::int64_t page = kv_page_tokens;

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

/// How blocks of keys or of values lie in a page: see page.hpp.
template <dtype Type, bool Keys>
struct page_blocks {
  static constexpr bool fifth_bits = Keys && Type == dtype::q4_0;
  using codec = formats::codec<fifth_bits ? dtype::q5_0 : Type>;
  using block = typename codec::block;
  static constexpr std::int64_t n = sizeof(block::qs);             ///< Codes of a block, in bytes.
  static constexpr std::int64_t bytes = n + (fifth_bits ? 4 : 0);  ///< With fifth bits.
  static constexpr std::uint8_t flip = Keys && Type == dtype::q8_0 ? kv_key_bias : 0;

  /// Where byte j of block b of a position is, among `bytes`.
  static std::int64_t at(std::int64_t dim, std::int64_t position, std::int64_t b, std::int64_t j) {
    return Keys ? ((b * bytes + j) / 4 * page + position) * 4 + j % 4 : position * dim / 32 * n + b * n + j;
  }
  static std::int64_t scale_at(std::int64_t dim, std::int64_t position, std::int64_t b) {
    return page * dim / 32 * bytes + 2 * (b * page + position);
  }

  static block load(const std::uint8_t* from, std::int64_t dim, std::int64_t position, std::int64_t b) {
    block out;
    std::memcpy(out.d, from + scale_at(dim, position, b), 2);
    for (std::int64_t j = 0; j < n; ++j) out.qs[j] = from[at(dim, position, b, j)] ^ flip;
    if constexpr (fifth_bits) {
      std::uint32_t bits = 0;
      for (std::int64_t j = 0; j < 32; ++j)
        bits |= static_cast<std::uint32_t>(from[at(dim, position, b, n + j % 4)] >> (j / 4) & 1) << j;
      formats::store_u32(out.qh, bits);
    }
    return out;
  }
  static void store(const block& from, std::int64_t dim, std::int64_t position, std::int64_t b, std::uint8_t* to) {
    std::memcpy(to + scale_at(dim, position, b), from.d, 2);
    for (std::int64_t j = 0; j < n; ++j) to[at(dim, position, b, j)] = from.qs[j] ^ flip;
    if constexpr (fifth_bits) {
      const std::uint32_t bits = formats::load_u32(from.qh);
      for (std::int64_t byte = 0; byte < 4; ++byte) {
        unsigned packed = 0;
        for (std::int64_t bit = 0; bit < 8; ++bit) packed |= (bits >> (4 * bit + byte) & 1U) << bit;
        to[at(dim, position, b, n + byte)] = static_cast<std::uint8_t>(packed);
      }
    }
  }
};

/// What one head has in a page, as f32: keys [head_dim, page] or values [page, head_dim].
template <dtype Type, bool Keys>
void load_quantized(const std::byte* from, std::int64_t dim, float* out) {
  using blocks = page_blocks<Type, Keys>;
  for (std::int64_t i = 0; i < page; ++i)
    for (std::int64_t b = 0; b < dim / 32; ++b) {
      float x[32];
      blocks::codec::decode(blocks::load(reinterpret_cast<const std::uint8_t*>(from), dim, i, b), x);
      for (std::int64_t j = 0; j < 32; ++j) out[Keys ? (32 * b + j) * page + i : i * dim + 32 * b + j] = x[j];
    }
}

/// The quantized numbers of one position.
template <dtype Type, bool Keys>
void store_quantized(const float* x, std::int64_t dim, std::int64_t slot, std::byte* to) {
  using blocks = page_blocks<Type, Keys>;
  const std::int64_t step = kv_rotation_block(dim);  // one or more blocks of 32
  for (std::int64_t first = 0; first < dim; first += step) {
    float numbers[most_rotated];
    std::memcpy(numbers, x + first, static_cast<std::size_t>(step) * sizeof(float));
    rotate_head(numbers, step);
    for (std::int64_t d = 0; d < step; d += 32) {
      typename blocks::block block;
      blocks::codec::encode(numbers + d, block);
      blocks::store(block, dim, slot, (first + d) / 32, reinterpret_cast<std::uint8_t*>(to));
    }
  }
}

template <dtype Type>
void load_quantized(const std::byte* from, std::int64_t dim, bool keys, float* out) {
  keys ? load_quantized<Type, true>(from, dim, out) : load_quantized<Type, false>(from, dim, out);
}
template <dtype Type>
void store_quantized(const float* x, std::int64_t dim, bool keys, std::int64_t slot, std::byte* to) {
  keys ? store_quantized<Type, true>(x, dim, slot, to) : store_quantized<Type, false>(x, dim, slot, to);
}

void load(const std::byte* from, dtype type, std::int64_t dim, bool keys, float* out) {
  if (type == dtype::q8_0) return load_quantized<dtype::q8_0>(from, dim, keys, out);
  if (type == dtype::q4_0) return load_quantized<dtype::q4_0>(from, dim, keys, out);
  if (type == dtype::f16) {
    const std::uint16_t* halves = reinterpret_cast<const std::uint16_t*>(from);
    for (std::int64_t i = 0; i < page * dim; ++i) out[i] = f16_to_f32(halves[i]);
  } else {
    std::memcpy(out, from, static_cast<std::size_t>(page * dim) * sizeof(float));
  }
}

void store(const float* x, dtype type, std::int64_t dim, bool keys, std::int64_t slot, std::byte* to) {
  if (type == dtype::q8_0) return store_quantized<dtype::q8_0>(x, dim, keys, slot, to);
  if (type == dtype::q4_0) return store_quantized<dtype::q4_0>(x, dim, keys, slot, to);
  for (std::int64_t d = 0; d < dim; ++d) {
    const std::int64_t at = keys ? d * page + slot : slot * dim + d;
    if (type == dtype::f16)
      reinterpret_cast<std::uint16_t*>(to)[at] = f32_to_f16_one(x[d]);
    else
      reinterpret_cast<float*>(to)[at] = x[d];
  }
}

/// A query as the kernels see it beside quantized keys.
void round_query(const float* q, std::int64_t dim, float* out) {
  std::memcpy(out, q, static_cast<std::size_t>(dim) * sizeof(float));
  rotate_head(out, dim);
  for (std::int64_t b = 0; b < dim; b += 32) {
    std::int32_t codes[32];
    const q8_scale s = q8_scale_of(peak_of(out + b));
    round_codes(out + b, s.inverse, codes);
    for (int i = 0; i < 32; ++i) out[b + i] = static_cast<float>(codes[i]) * s.scale;
  }
}

struct state {
  float peak;         ///< Largest score so far.
  float denominator;  ///< Sum of exp(score - peak).
};

/// Scores of positions [low, high) of the page against one query, turned into exp(score - peak); updates the state and
/// rescales the output so far.
void score(const attention_args& args, const float* q, const float* keys, std::int64_t low, std::int64_t high, state& s,
           float* p, float* out) {
  float scores[page] = {};
  for (std::int64_t d = 0; d < args.head_dim; ++d) {
    const float x = q[d] * args.scale;
    for (std::int64_t i = 0; i < page; ++i) scores[i] = multiply_add(x, keys[d * page + i], scores[i]);
  }
  if (args.softcap > 0)
    for (std::int64_t i = low; i < high; ++i) scores[i] = args.softcap * tanh_f32(scores[i] / args.softcap);
  float peak = s.peak;
  for (std::int64_t i = low; i < high; ++i) peak = scores[i] > peak ? scores[i] : peak;
  for (std::int64_t i = low; i < high; ++i) p[i] = exp_f32(scores[i] - peak);
  float sum = 0;
  for (std::int64_t i = low; i < high; ++i) sum += p[i];
  const float correction = exp_f32(s.peak - peak);
  s.denominator = s.denominator * correction + sum;
  s.peak = peak;
  for (std::int64_t d = 0; d < args.head_dim; ++d) out[d] *= correction;
}

}  // namespace

void store_kv_generic(const store_kv_args& args, std::int64_t kv_head) {
  const std::int64_t dim = args.head_dim;
  for (std::int64_t t = 0; t < args.n_tokens; ++t) {
    const std::int64_t position = args.first_position + t;
    std::byte* const k = args.kv_pages[position / page] + kv_keys_offset(args.kv_type, dim, kv_head);
    std::byte* const v = args.kv_pages[position / page] + kv_values_offset(args.kv_type, args.n_kv_heads, dim, kv_head);
    store(args.k + t * args.k_stride + kv_head * dim, args.kv_type, dim, true, position % page, k);
    store(args.v + t * args.v_stride + kv_head * dim, args.kv_type, dim, false, position % page, v);
  }
}

constexpr std::int64_t row_group = 16;  ///< Rows that share a converted page.

/// Keys or values of one page of one head, and the rounded queries.
std::size_t attention_scratch_generic(const attention_args& args) {
  return static_cast<std::size_t>((page + (is_quantized_kv(args.kv_type) ? row_group : 0)) * args.head_dim);
}

void attention_generic(const attention_args& args, std::int64_t kv_head, std::int64_t token_begin,
                       std::int64_t token_end, float* scratch) {
  float p[row_group][page];
  state states[row_group];
  std::int64_t low[row_group];
  std::int64_t high[row_group];
  const std::int64_t dim = args.head_dim;
  const std::int64_t group = args.n_heads / args.n_kv_heads;
  const std::size_t k_offset = kv_keys_offset(args.kv_type, dim, kv_head);
  const std::size_t v_offset = kv_values_offset(args.kv_type, args.n_kv_heads, dim, kv_head);
  const bool rounded = is_quantized_kv(args.kv_type);
  float* const queries = scratch + page * dim;
  const std::int64_t row_last = token_end * group;
  for (std::int64_t begin = token_begin * group; begin < row_last; begin += row_group) {
    const std::int64_t rows = least(row_group, row_last - begin);
    const auto given_query = [&](std::int64_t r) {
      return args.q + (begin + r) / group * args.q_stride + (kv_head * group + (begin + r) % group) * dim;
    };
    const auto query = [&](std::int64_t r) { return rounded ? queries + r * dim : given_query(r); };
    const auto output = [&](std::int64_t r) {
      return args.out + (begin + r) / group * args.out_stride + (kv_head * group + (begin + r) % group) * dim;
    };
    const auto position = [&](std::int64_t r) { return args.first_position + (begin + r) / group; };
    const auto first_seen = [&](std::int64_t r) {
      return args.window > 0 ? most(0, position(r) - args.window + 1) : 0;
    };
    for (std::int64_t r = 0; r < rows; ++r) {
      std::memset(output(r), 0, static_cast<std::size_t>(dim) * sizeof(float));
      if (rounded) round_query(given_query(r), dim, queries + r * dim);
      const bool sink = args.sinks != nullptr;
      states[r] = {sink ? args.sinks[kv_head * group + (begin + r) % group] : -HUGE_VALF, sink ? 1.0f : 0.0f};
    }
    for (std::int64_t block = first_seen(0) / page; block <= position(rows - 1) / page; ++block) {
      load(args.kv_pages[block] + k_offset, args.kv_type, dim, true, scratch);
      for (std::int64_t r = 0; r < rows; ++r) {
        low[r] = most(0, first_seen(r) - block * page);
        high[r] = least(page, position(r) + 1 - block * page);
        if (low[r] < high[r]) score(args, query(r), scratch, low[r], high[r], states[r], p[r], output(r));
      }
      load(args.kv_pages[block] + v_offset, args.kv_type, dim, false, scratch);
      for (std::int64_t r = 0; r < rows; ++r) {
        float* out = output(r);
        for (std::int64_t i = low[r]; i < high[r]; ++i)
          for (std::int64_t d = 0; d < dim; ++d) out[d] = multiply_add(p[r][i], scratch[i * dim + d], out[d]);
      }
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      float* out = output(r);
      const float inverse = 1 / states[r].denominator;
      for (std::int64_t d = 0; d < dim; ++d) out[d] *= inverse;
      if (rounded) rotate_head(out, dim);
    }
  }
}

}  // namespace flywheel::inline v0::kernels
