// Portable attention: a page of keys or values at a time is converted to f32 once for all rows (tokens x heads of the
// group).
#include <cmath>
#include <cstring>

#include "kernels/declare.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

constexpr std::int64_t page = kv_page_tokens;

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

/// `n` stored numbers from the `offset`-th on as f32.
void load(const std::byte* from, dtype type, std::int64_t offset, std::int64_t n, float* out) {
  if (type == dtype::f16) {
    const std::uint16_t* halves = reinterpret_cast<const std::uint16_t*>(from) + offset;
    for (std::int64_t i = 0; i < n; ++i) out[i] = f16_to_f32(halves[i]);
  } else {
    std::memcpy(out, reinterpret_cast<const float*>(from) + offset, static_cast<std::size_t>(n) * sizeof(float));
  }
}

void store_number(std::byte* to, dtype type, std::int64_t offset, float x) {
  if (type == dtype::f16)
    reinterpret_cast<std::uint16_t*>(to)[offset] = f32_to_f16_one(x);
  else
    reinterpret_cast<float*>(to)[offset] = x;
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
  const std::int64_t width = args.kv_type == dtype::f16 ? 2 : 4;
  const std::int64_t head = page * args.head_dim;
  for (std::int64_t t = 0; t < args.n_tokens; ++t) {
    const std::int64_t position = args.first_position + t;
    std::byte* k_out = args.kv_pages[position / page] + kv_head * head * width;
    std::byte* v_out = k_out + args.n_kv_heads * head * width;
    const float* k = args.k + t * args.k_stride + kv_head * args.head_dim;
    const float* v = args.v + t * args.v_stride + kv_head * args.head_dim;
    const std::int64_t slot = position % page;
    for (std::int64_t d = 0; d < args.head_dim; ++d) store_number(k_out, args.kv_type, d * page + slot, k[d]);
    for (std::int64_t d = 0; d < args.head_dim; ++d) store_number(v_out, args.kv_type, slot * args.head_dim + d, v[d]);
  }
}

/// Keys or values of one page of one head.
std::size_t attention_scratch_generic(const attention_args& args) {
  return static_cast<std::size_t>(page * args.head_dim);
}

void attention_generic(const attention_args& args, std::int64_t kv_head, std::int64_t token_begin,
                       std::int64_t token_end, float* scratch) {
  constexpr std::int64_t row_group = 16;  // rows that share a converted page
  float p[row_group][page];
  state states[row_group];
  std::int64_t low[row_group];
  std::int64_t high[row_group];
  const std::int64_t dim = args.head_dim;
  const std::int64_t group = args.n_heads / args.n_kv_heads;
  const std::int64_t k_offset = kv_head * page * dim;
  const std::int64_t v_offset = (args.n_kv_heads + kv_head) * page * dim;
  const std::int64_t row_last = token_end * group;
  for (std::int64_t begin = token_begin * group; begin < row_last; begin += row_group) {
    const std::int64_t rows = least(row_group, row_last - begin);
    const auto query = [&](std::int64_t r) {
      return args.q + (begin + r) / group * args.q_stride + (kv_head * group + (begin + r) % group) * dim;
    };
    const auto output = [&](std::int64_t r) {
      return args.out + (begin + r) / group * args.out_stride + (kv_head * group + (begin + r) % group) * dim;
    };
    const auto position = [&](std::int64_t r) { return args.first_position + (begin + r) / group; };
    const auto first_seen = [&](std::int64_t r) {
      return args.window > 0 ? most(0, position(r) - args.window + 1) : 0;
    };
    for (std::int64_t r = 0; r < rows; ++r) {
      std::memset(output(r), 0, static_cast<std::size_t>(dim) * sizeof(float));
      const bool sink = args.sinks != nullptr;
      states[r] = {sink ? args.sinks[kv_head * group + (begin + r) % group] : -HUGE_VALF, sink ? 1.0f : 0.0f};
    }
    for (std::int64_t block = first_seen(0) / page; block <= position(rows - 1) / page; ++block) {
      load(args.kv_pages[block], args.kv_type, k_offset, page * dim, scratch);
      for (std::int64_t r = 0; r < rows; ++r) {
        low[r] = most(0, first_seen(r) - block * page);
        high[r] = least(page, position(r) + 1 - block * page);
        if (low[r] < high[r]) score(args, query(r), scratch, low[r], high[r], states[r], p[r], output(r));
      }
      load(args.kv_pages[block], args.kv_type, v_offset, page * dim, scratch);
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
    }
  }
}

}  // namespace flywheel::inline v0::kernels
