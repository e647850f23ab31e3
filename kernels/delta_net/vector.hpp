// The gated delta rule over `simd` vectors. Include after one simd_*.hpp.
//
// S is walked in strips of 32 columns, 16 KiB for 128 rows, which stay in L1 while a block of tokens passes. Each
// column sums over the rows from first to last, whatever the width of the strip. A single token (decode) takes S
// through the core once: there strips are as wide as registers allow, rows are prefetched, and stores go around the
// caches, which the states of all heads and layers would only flush.
#pragma once

#include "kernels/activation/vector.hpp"
#include "kernels/delta_net/shared.hpp"
#include "kernels/norm/vector.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class S>
struct delta_rule {
  using V = typename S::floats;
  static constexpr std::int64_t block_tokens = 32;
  static constexpr int strip = 32 / S::width;  ///< Vectors. One walk of 4 operations each outlasts an fma's latency.
  static constexpr int wide_strip = S::registers == 32 && S::width == 16 ? 8 : strip;

  /// What a block's tokens bring: rows of q and k (normed, q scaled) and of v, and numbers.
  struct block {
    float *q, *k, *v;  ///< [block_tokens, head dim]
    float decay[block_tokens], beta[block_tokens], kq[block_tokens];
  };

  static std::size_t scratch_floats(const delta_net_args& args) {
    return static_cast<std::size_t>(block_tokens * (2 * args.head_k_dim + args.head_v_dim) +
                                    args.head_k_dim * args.head_v_dim);
  }

  static void run(const delta_net_args& args, std::int64_t head, float* scratch) {
    const std::int64_t dk = args.head_k_dim, dv = args.head_v_dim;
    block b;
    b.q = scratch;
    b.k = b.q + block_tokens * dk;
    b.v = b.k + block_tokens * dk;
    float* between = b.v + block_tokens * dv;  // S between blocks, strip after strip
    for (std::int64_t first = 0; first < args.n_tokens; first += block_tokens) {
      const std::int64_t n = args.n_tokens - first < block_tokens ? args.n_tokens - first : block_tokens;
      for (std::int64_t t = 0; t < n; ++t) prepare(args, head, first + t, t, b);
      std::int64_t column = 0;
      const auto strips = [&]<int C, bool Once>() {
        for (; column + C * S::width <= dv; column += C * S::width)
          columns<C, Once>(args, head, first, n, column, b, between + column * dk);
      };
      if (args.n_tokens == 1 && reinterpret_cast<std::uintptr_t>(args.next_state + args.head_state(head)) % 64 == 0) {
        strips.template operator()<wide_strip, true>();
        strips.template operator()<strip, true>();
      }
      strips.template operator()<strip, false>();
      strips.template operator()<1, false>();
      for (std::int64_t t = first; t < first + n; ++t) {
        float* out = args.out + t * args.values() + head * dv;
        const double mean = dot(out, out, dv) / static_cast<double>(dv);
        norms<S>::multiply(out, args.norm, 1 / __builtin_sqrt(mean + static_cast<double>(args.norm_eps)), dv, out);
        element_wise<S>::glu(activation::silu, args.z + t * args.values() + head * dv, out, dv, out);
      }
    }
    store_tails(args, head);
    S::end_stream();
  }

 private:
  /// y = silu of the convolution of channels [channel, channel + n). Kernel: args.conv_kernel, or 0 for any.
  template <std::int64_t Kernel>
  static void convolve(const delta_net_args& args, std::int64_t t, std::int64_t channel, std::int64_t n, float* y) {
    const std::int64_t kernel = Kernel == 0 ? args.conv_kernel : Kernel;
    const float* rows[longest_conv_kernel];
    for (std::int64_t j = 0; j < kernel; ++j) rows[j] = args.row(t - kernel + 1 + j) + channel;
    const float* taps = args.taps + channel;
    for (std::int64_t i = 0; i < n; i += S::width) {
      V sum = S::mul(S::load(taps + i), S::load(rows[0] + i));
      for (std::int64_t j = 1; j < kernel; ++j)
        sum = S::fma(S::load(taps + j * args.channels() + i), S::load(rows[j] + i), sum);
      S::store(y + i, silu_vector<S>(sum));
    }
  }

  /// a . b; n is a multiple of delta_net_granularity.
  static double dot(const float* a, const float* b, std::int64_t n) {
    V sums[4] = {S::zero(), S::zero(), S::zero(), S::zero()};
    for (std::int64_t i = 0; i < n; i += 4 * S::width)
      for (int j = 0; j < 4 && i + j * S::width < n; ++j)
        sums[j] = S::fma(S::load(a + i + j * S::width), S::load(b + i + j * S::width), sums[j]);
    return static_cast<double>(S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]))));
  }

  static void prepare(const delta_net_args& args, std::int64_t head, std::int64_t token, std::int64_t t, block& b) {
    const std::int64_t dk = args.head_k_dim, dv = args.head_v_dim;
    const auto eps = static_cast<double>(args.norm_eps);
    float *q = b.q + t * dk, *k = b.k + t * dk;
    const auto convolved = args.conv_kernel == 4 ? convolve<4> : convolve<0>;
    convolved(args, token, args.q_channel(head), dk, q);
    convolved(args, token, args.k_channel(head), dk, k);
    convolved(args, token, args.v_channel(head), dv, b.v + t * dv);
    norms<S>::multiply(q, nullptr, 1 / __builtin_sqrt((dot(q, q, dk) + eps) * static_cast<double>(dk)), dk, q);
    norms<S>::multiply(k, nullptr, 1 / __builtin_sqrt(dot(k, k, dk) + eps), dk, k);
    const delta_gates g = gates_of(args, token, head);
    b.decay[t] = g.decay;
    b.beta[t] = g.beta;
    b.kq[t] = static_cast<float>(dot(k, q, dk));
  }

  /// C vectors of columns of S in memory.
  struct place {
    float* at;
    std::int64_t stride;
  };
  struct source {
    const float* at;
    std::int64_t stride;
  };

  /// One walk over the rows of C columns: S <- decay S + k_old delta^T stored in `to`, then u = S^T k, w = S^T q.
  template <bool Update, bool Products, bool Once, int C>
  [[gnu::always_inline]] static inline void walk(source from, place to, std::int64_t rows, float decay,
                                                 const float* k_old, const V (&delta)[C], const float* k,
                                                 const float* q, V (&u)[C], V (&w)[C]) {
    [[maybe_unused]] const V g = S::set1(decay);
    for (int c = 0; c < C; ++c) u[c] = w[c] = S::zero();
    for (std::int64_t i = 0; i < rows; ++i) {
      V s[C];
      if constexpr (Once && !Update)  // whole rows, for the strips after this one too
        for (std::int64_t c = 0; c < from.stride; c += 16) S::prefetch_far(from.at + (i + 16) * from.stride + c);
      for (int c = 0; c < C; ++c) s[c] = S::load(from.at + i * from.stride + c * S::width);
      if constexpr (Update) {
        const V x = S::set1(k_old[i]);
        for (int c = 0; c < C; ++c) s[c] = S::fma(x, delta[c], S::mul(g, s[c]));
        for (int c = 0; c < C; ++c) {
          float* p = to.at + i * to.stride + c * S::width;
          Once ? S::stream(p, s[c]) : S::store(p, s[c]);
        }
      }
      if constexpr (Products) {
        const V x = S::set1(k[i]), y = S::set1(q[i]);
        for (int c = 0; c < C; ++c) u[c] = S::fma(x, s[c], u[c]);
        for (int c = 0; c < C; ++c) w[c] = S::fma(y, s[c], w[c]);
      }
    }
  }

  /// A block's tokens, the first n, on C vectors of columns from `column` on.
  template <int C, bool Once>
  static void columns(const delta_net_args& args, std::int64_t head, std::int64_t first, std::int64_t n,
                      std::int64_t column, const block& b, float* between) {
    const std::int64_t dk = args.head_k_dim, dv = args.head_v_dim;
    const place kept = {between, C * S::width};
    const place end = first + n == args.n_tokens ? place{args.next_state + args.head_state(head) + column, dv} : kept;
    source from = {kept.at, kept.stride};
    if (first == 0) from = {args.state + args.head_state(head) + column, dv};
    V u[C], w[C], delta[C] = {};
    walk<false, true, Once>(from, kept, dk, 0, nullptr, delta, b.k, b.q, u, w);
    for (std::int64_t t = 0; t < n; ++t) {
      const V g = S::set1(b.decay[t]), beta = S::set1(b.beta[t]), kq = S::set1(b.kq[t]);
      float* out = args.out + (first + t) * args.values() + head * dv + column;
      for (int c = 0; c < C; ++c) {
        delta[c] = S::mul(beta, S::fnma(g, u[c], S::load(b.v + t * dv + column + c * S::width)));
        S::store(out + c * S::width, S::fma(kq, delta[c], S::mul(g, w[c])));
      }
      const float* k = b.k + t * dk;
      if (t + 1 == n) {
        walk<true, false, Once>(from, end, dk, b.decay[t], k, delta, nullptr, nullptr, u, w);
      } else {
        walk<true, true, Once>(from, kept, dk, b.decay[t], k, delta, k + dk, b.q + (t + 1) * dk, u, w);
        from = {kept.at, kept.stride};
      }
    }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
