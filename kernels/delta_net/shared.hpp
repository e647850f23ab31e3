// What all implementations share: the gates of a head and token, and the rows of qkv that the state keeps.
#pragma once

#include "kernels/delta_net/delta_net.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

struct delta_gates {
  float decay, beta;
};

inline delta_gates gates_of(const delta_net_args& args, std::int64_t token, std::int64_t head) {
  const std::int64_t at = token * args.n_v_heads + head;
  const float x = args.alpha[at] + args.dt[head];
  // softplus(x) = ln(1 + exp(x)), in a form that neither overflows nor cancels.
  const float softplus = (x > 0 ? x : 0) + __builtin_log1pf(exp_f32(x > 0 ? -x : x));
  return {exp_f32(args.a[head] * softplus), sigmoid_f32(args.beta[at])};
}

/// The rows that the next call's convolution looks back at: channels [channel, channel + n).
inline void store_tail(const delta_net_args& args, std::int64_t channel, std::int64_t n) {
  for (std::int64_t j = 0; j < args.conv_kernel - 1; ++j)
    __builtin_memcpy(args.next_state + j * args.channels() + channel,
                     args.row(args.n_tokens - args.conv_kernel + 1 + j) + channel,
                     static_cast<std::size_t>(n) * sizeof(float));
}

/// All tails that belong to a head.
inline void store_tails(const delta_net_args& args, std::int64_t head) {
  store_tail(args, args.v_channel(head), args.head_v_dim);
  if (head >= args.n_k_heads) return;  // a head before it has the same key head
  store_tail(args, args.q_channel(head), args.head_k_dim);
  store_tail(args, args.k_channel(head), args.head_k_dim);
}

}  // namespace
}  // namespace flywheel::inline v0::kernels
