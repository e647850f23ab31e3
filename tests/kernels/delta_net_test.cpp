// The gated delta rule against its reference, and its promise: tokens cut anyhow give the same bits.
#include <algorithm>

#include "kernel_test.hpp"
#include "kernels/delta_net/reference.hpp"
#include "tolerances.hpp"

using namespace flywheel;
using namespace flywheel::test;
using kernels::delta_net_args;
using kernels::kernel_set;

namespace delta_net_kernels {
namespace {

struct shape_case {
  std::int64_t n_k_heads, n_v_heads, head_k_dim, head_v_dim, conv_kernel, tokens;
};

/// Random inputs of all heads, and room for results with a guard behind them.
struct problem {
  delta_net_args args;
  std::vector<float> qkv, z, beta, alpha, taps, dt, a, norm, state;

  problem(const shape_case& c, std::uint32_t seed) {
    random_source random(seed);
    args.n_tokens = c.tokens;
    args.n_k_heads = c.n_k_heads;
    args.n_v_heads = c.n_v_heads;
    args.head_k_dim = c.head_k_dim;
    args.head_v_dim = c.head_v_dim;
    args.conv_kernel = c.conv_kernel;
    args.norm_eps = 1e-6f;
    const auto numbers = [&](std::int64_t n, float scale = 1) {
      return random.numbers(static_cast<std::size_t>(n), scale);
    };
    args.qkv = (qkv = numbers(c.tokens * args.channels())).data();
    args.z = (z = numbers(c.tokens * args.values())).data();
    args.beta = (beta = numbers(c.tokens * c.n_v_heads, 2)).data();
    args.alpha = (alpha = numbers(c.tokens * c.n_v_heads, 3)).data();
    args.taps = (taps = numbers(c.conv_kernel * args.channels())).data();
    args.dt = (dt = numbers(c.n_v_heads)).data();
    a = numbers(c.n_v_heads, 0.3f);
    for (float& x : a) x = -std::fabs(x);
    args.a = a.data();
    args.norm = (norm = numbers(c.head_v_dim)).data();
    args.state = (state = numbers(args.head_state(c.n_v_heads), 0.1f)).data();
  }
};

struct outcome {
  std::vector<float> out, state;
  friend bool operator==(const outcome&, const outcome&) = default;
};

/// All heads, the tokens in calls of at most `chunk`.
outcome run(const kernel_set& set, const problem& p, std::int64_t chunk) {
  outcome got{std::vector<float>(static_cast<std::size_t>(p.args.n_tokens * p.args.values()) + 1, 77.0f), p.state};
  for (std::int64_t t = 0; t < p.args.n_tokens; t += chunk) {
    const std::vector<float> before = got.state;
    std::fill(got.state.begin(), got.state.end(), NAN);
    delta_net_args args = p.args;
    args.n_tokens = std::min(chunk, p.args.n_tokens - t);
    args.qkv += t * args.channels();
    args.z += t * args.values();
    args.beta += t * args.n_v_heads;
    args.alpha += t * args.n_v_heads;
    args.state = before.data();
    args.next_state = got.state.data();
    args.out = got.out.data() + t * args.values();
    const std::size_t floats = set.delta_net_scratch(args);
    aligned_array<float> scratch(floats + 1);
    scratch[floats] = 55.0f;
    for (std::int64_t h = args.n_v_heads; h-- > 0;) set.delta_net(args, h, scratch.data());
    CHECK(scratch[floats] == 55.0f);
  }
  CHECK(got.out.back() == 77.0f);
  return got;
}

/// Largest difference over n numbers, relative to the largest expected one.
double distance(const float* got, const std::vector<double>& want, std::int64_t rows, std::int64_t stride) {
  const std::int64_t cols = static_cast<std::int64_t>(want.size()) / rows;
  double peak = 0, worst = 0;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < cols; ++i) {
      const double w = want[static_cast<std::size_t>(r * cols + i)], g = static_cast<double>(got[r * stride + i]);
      peak = std::max(peak, std::fabs(w));
      worst = std::max(worst, std::isfinite(g) ? std::fabs(g - w) : 1e30);
    }
  return worst / peak;
}

const shape_case cases[] = {{1, 2, 64, 64, 4, 70},  {2, 4, 128, 128, 4, 33}, {3, 3, 16, 48, 4, 5},
                            {2, 2, 32, 16, 2, 100}, {1, 3, 48, 160, 7, 9},   {1, 1, 16, 32, 1, 40},
                            {2, 6, 128, 64, 16, 3}};

}  // namespace

TEST_CASE("gated delta rule equals its reference", "[kernels][delta_net]") {
  for (const kernels::cluster isa : runnable_clusters()) {
    const kernel_set& set = kernels::select(isa);
    for (const shape_case& c : cases) {
      CAPTURE(name_of(isa), c.n_k_heads, c.n_v_heads, c.head_k_dim, c.head_v_dim, c.conv_kernel, c.tokens);
      const problem p(c, 31);
      const outcome got = run(set, p, c.tokens);
      for (std::int64_t h = 0; h < c.n_v_heads; ++h) {
        std::vector<double> out(static_cast<std::size_t>(c.tokens * c.head_v_dim));
        std::vector<double> state(static_cast<std::size_t>(c.head_k_dim * c.head_v_dim));
        kernels::reference::delta_net(p.args, h, out.data(), state.data());
        CHECK(distance(got.out.data() + h * c.head_v_dim, out, c.tokens, p.args.values()) < tolerance::delta_net);
        CHECK(distance(got.state.data() + p.args.head_state(h), state, 1, 0) < tolerance::delta_net);
      }
      // The tail holds the last rows, of the old tail where there are not enough.
      for (std::int64_t j = 0; j < c.conv_kernel - 1; ++j)
        CHECK(std::equal(got.state.begin() + j * p.args.channels(), got.state.begin() + (j + 1) * p.args.channels(),
                         p.args.row(c.tokens - c.conv_kernel + 1 + j)));
    }
  }
}

TEST_CASE("gated delta rule gives the same bits however tokens are cut", "[kernels][delta_net]") {
  for (const kernels::cluster isa : runnable_clusters()) {
    const kernel_set& set = kernels::select(isa);
    for (const shape_case& c : cases) {
      CAPTURE(name_of(isa), c.head_k_dim, c.head_v_dim, c.conv_kernel, c.tokens);
      const problem p(c, 32);
      const outcome whole = run(set, p, c.tokens);
      for (const std::int64_t chunk : {1, 2, 3, 32, 33, 64}) CHECK(run(set, p, chunk) == whole);
    }
  }
}

TEST_CASE("gates of a delta net are right at the ends of their range", "[kernels][delta_net]") {
  for (const kernels::cluster isa : runnable_clusters()) {
    const kernel_set& set = kernels::select(isa);
    CAPTURE(name_of(isa));
    problem p({1, 1, 16, 16, 1, 1}, 33);
    const auto state_with = [&](float alpha, float beta) {
      p.alpha[0] = alpha;
      p.beta[0] = beta;
      return run(set, p, 1).state;
    };
    CHECK(state_with(-200, -200) == p.state);                     // keeps everything, writes nothing
    for (const float s : state_with(1e30f, -200)) CHECK(s == 0);  // forgets everything
    for (const float s : state_with(1e30f, 1e30f)) CHECK(std::isfinite(s));
  }
}

}  // namespace delta_net_kernels
