#include <cmath>

#include "kernels/declare.hpp"
#include "kernels/delta_net/shared.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

void convolve(const delta_net_args& args, std::int64_t t, std::int64_t channel, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = 0;
  for (std::int64_t j = 0; j < args.conv_kernel; ++j) {
    const float* x = args.row(t - args.conv_kernel + 1 + j) + channel;
    const float* taps = args.taps + j * args.channels() + channel;
    for (std::int64_t i = 0; i < n; ++i) y[i] = multiply_add(taps[i], x[i], y[i]);
  }
  for (std::int64_t i = 0; i < n; ++i) y[i] = silu_f32(y[i]);
}

double dot(const float* a, const float* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

void scale(float* x, double factor, std::int64_t n) { scale_generic(x, static_cast<float>(factor), n, x); }

}  // namespace

std::size_t delta_net_scratch_generic(const delta_net_args& args) {
  return static_cast<std::size_t>(2 * args.head_k_dim + 2 * args.head_v_dim);
}

void delta_net_generic(const delta_net_args& args, std::int64_t head, float* scratch) {
  const std::int64_t dk = args.head_k_dim, dv = args.head_v_dim;
  const auto eps = static_cast<double>(args.norm_eps);
  float *q = scratch, *k = q + dk, *delta = k + dk, *known = delta + dv;
  const float* old = args.state + args.head_state(head);
  float* s = args.next_state + args.head_state(head);
  for (std::int64_t t = 0; t < args.n_tokens; ++t, old = s) {
    convolve(args, t, args.q_channel(head), dk, q);
    convolve(args, t, args.k_channel(head), dk, k);
    convolve(args, t, args.v_channel(head), dv, delta);
    scale(q, 1 / std::sqrt((dot(q, q, dk) + eps) * static_cast<double>(dk)), dk);
    scale(k, 1 / std::sqrt(dot(k, k, dk) + eps), dk);
    const delta_gates g = gates_of(args, t, head);
    for (std::int64_t j = 0; j < dv; ++j) known[j] = 0;
    for (std::int64_t i = 0; i < dk; ++i)
      for (std::int64_t j = 0; j < dv; ++j) known[j] = multiply_add(k[i], old[i * dv + j], known[j]);
    for (std::int64_t j = 0; j < dv; ++j) delta[j] = g.beta * multiply_add(-g.decay, known[j], delta[j]);
    float* out = args.out + t * args.values() + head * dv;
    for (std::int64_t j = 0; j < dv; ++j) out[j] = 0;
    for (std::int64_t i = 0; i < dk; ++i)
      for (std::int64_t j = 0; j < dv; ++j) {
        const float updated = multiply_add(k[i], delta[j], g.decay * old[i * dv + j]);
        s[i * dv + j] = updated;
        out[j] = multiply_add(q[i], updated, out[j]);
      }
    rms_norm_generic(out, args.norm, args.norm_eps, dv, out);
    glu_generic(activation::silu, args.z + t * args.values() + head * dv, out, dv, out);
  }
  store_tails(args, head);
}

}  // namespace flywheel::inline v0::kernels
