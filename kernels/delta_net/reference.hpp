// Specification of the gated delta rule, in double, one loop per line of the formula in delta_net.hpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/delta_net/delta_net.hpp"

namespace flywheel::inline v0::kernels::reference {

/// One head. out: [n_tokens, head_v_dim], next: its S [head_k_dim, head_v_dim] after the last token.
inline void delta_net(const delta_net_args& args, std::int64_t head, double* out, double* next) {
  const std::int64_t dk = args.head_k_dim, dv = args.head_v_dim;
  const auto silu = [](double x) { return x / (1 + std::exp(-x)); };
  const auto convolved = [&](std::int64_t t, std::int64_t channel, std::int64_t n) {
    std::vector<double> c(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) {
      double sum = 0;
      for (std::int64_t j = 0; j < args.conv_kernel; ++j)
        sum += static_cast<double>(args.taps[j * args.channels() + channel + i]) *
               static_cast<double>(args.row(t - args.conv_kernel + 1 + j)[channel + i]);
      c[static_cast<std::size_t>(i)] = silu(sum);
    }
    return c;
  };
  const auto normed = [&](std::vector<double> y, double factor) {
    double squares = 0;
    for (const double x : y) squares += x * x;
    for (double& x : y) x *= factor / std::sqrt(squares + static_cast<double>(args.norm_eps));
    return y;
  };
  for (std::int64_t i = 0; i < dk * dv; ++i) next[i] = static_cast<double>(args.state[args.head_state(head) + i]);
  for (std::int64_t t = 0; t < args.n_tokens; ++t) {
    const auto q = normed(convolved(t, args.q_channel(head), dk), 1 / std::sqrt(static_cast<double>(dk)));
    const auto k = normed(convolved(t, args.k_channel(head), dk), 1);
    const auto v = convolved(t, args.v_channel(head), dv);
    const std::int64_t at = t * args.n_v_heads + head;
    const double step = std::log1p(std::exp(static_cast<double>(args.alpha[at]) + static_cast<double>(args.dt[head])));
    const double decay = std::exp(static_cast<double>(args.a[head]) * step);
    const double beta = 1 / (1 + std::exp(-static_cast<double>(args.beta[at])));
    double* o = out + t * dv;
    double squares = 0;
    for (std::int64_t j = 0; j < dv; ++j) {
      double known = 0;
      for (std::int64_t i = 0; i < dk; ++i) known += decay * next[i * dv + j] * k[static_cast<std::size_t>(i)];
      const double delta = beta * (v[static_cast<std::size_t>(j)] - known);
      o[j] = 0;
      for (std::int64_t i = 0; i < dk; ++i) {
        double& s = next[i * dv + j];
        s = decay * s + k[static_cast<std::size_t>(i)] * delta;
        o[j] += s * q[static_cast<std::size_t>(i)];
      }
      squares += o[j] * o[j];
    }
    const double root = std::sqrt(squares / static_cast<double>(dv) + static_cast<double>(args.norm_eps));
    for (std::int64_t j = 0; j < dv; ++j)
      o[j] *= static_cast<double>(args.norm[j]) / root * silu(static_cast<double>(args.z[(at * dv) + j]));
  }
}

}  // namespace flywheel::inline v0::kernels::reference
