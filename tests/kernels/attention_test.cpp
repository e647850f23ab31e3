#include "kernel_test.hpp"
#include "kernels/attention/reference.hpp"
#include "tolerances.hpp"

using namespace flywheel;
using namespace flywheel::test;
using kernels::kernel_set;
using kernels::kv_page_tokens;

namespace {

struct problem {
  std::int64_t n_heads, n_kv_heads, head_dim, first, n_tokens;
  dtype kv_type = dtype::f16;
  std::int64_t window = 0;
  float softcap = 0;
  bool sinks = false;
};

/// Queries, and a cache of first + n_tokens positions whose unused slots hold NaN.
struct cache {
  cache(const kernel_set& set, const problem& s, random_source& random) : what(s) {
    const std::int64_t positions = s.first + s.n_tokens;
    const std::size_t row = static_cast<std::size_t>(s.n_kv_heads * s.head_dim);
    k = random.numbers(static_cast<std::size_t>(positions) * row);
    v = random.numbers(static_cast<std::size_t>(positions) * row);
    q = random.numbers(static_cast<std::size_t>(s.n_tokens * s.n_heads * s.head_dim));
    sinks = random.numbers(static_cast<std::size_t>(s.n_heads), 3);
    const std::size_t page_bytes = kernels::kv_page_bytes(s.kv_type, s.n_kv_heads, s.head_dim);
    for (std::int64_t p = 0; p < positions; p += kv_page_tokens) {
      storage.emplace_back(page_bytes);
      std::memset(storage.back().data(), 0xff, page_bytes);
    }
    for (aligned_array<std::byte>& page : storage) pages.push_back(page.data());
    // In two pieces, as prefill and decode store them.
    const std::int64_t cut = random.below(positions + 1);
    for (const auto& [begin, end] : {std::pair{std::int64_t{0}, cut}, std::pair{cut, positions}}) {
      kernels::store_kv_args args;
      args.k = k.data() + static_cast<std::size_t>(begin) * row;
      args.v = v.data() + static_cast<std::size_t>(begin) * row;
      args.k_stride = args.v_stride = static_cast<std::int64_t>(row);
      args.kv_pages = pages.data();
      args.kv_type = s.kv_type;
      args.n_tokens = end - begin;
      args.n_kv_heads = s.n_kv_heads;
      args.head_dim = s.head_dim;
      args.first_position = begin;
      for (std::int64_t h = 0; h < s.n_kv_heads; ++h) set.store_kv(args, h);
    }
    if (s.kv_type == dtype::f16)
      for (std::vector<float>* stored : {&k, &v})
        for (float& x : *stored) x = formats::f16_to_f32(formats::f32_to_f16(x));
  }

  kernels::attention_args args(float* out) const {
    kernels::attention_args a;
    a.q = q.data();
    a.q_stride = a.out_stride = what.n_heads * what.head_dim;
    a.out = out;
    a.kv_pages = pages.data();
    a.kv_type = what.kv_type;
    a.n_heads = what.n_heads;
    a.n_kv_heads = what.n_kv_heads;
    a.head_dim = what.head_dim;
    a.first_position = what.first;
    a.window = what.window;
    a.scale = 1 / std::sqrt(static_cast<float>(what.head_dim));
    a.softcap = what.softcap;
    a.sinks = what.sinks ? sinks.data() : nullptr;
    return a;
  }

  /// All tokens, `step` of them per call.
  std::vector<float> run(const kernel_set& set, std::int64_t step) {
    std::vector<float> out(q.size(), 12345.0f);
    const kernels::attention_args a = args(out.data());
    const std::size_t scratch_size = set.attention_scratch(a);
    aligned_array<float> scratch(scratch_size + 16);
    for (std::size_t i = 0; i < scratch_size + 16; ++i) scratch[i] = NAN;
    for (std::int64_t h = 0; h < what.n_kv_heads; ++h)
      for (std::int64_t t = 0; t < what.n_tokens; t += step)
        set.attention(a, h, t, std::min(t + step, what.n_tokens), scratch.data());
    for (std::size_t i = 0; i < 16; ++i) REQUIRE(std::isnan(scratch[scratch_size + i]));
    return out;
  }

  /// Largest error relative to max |v|.
  double error(const std::vector<float>& out) const {
    const std::int64_t dim = what.head_dim, group = what.n_heads / what.n_kv_heads,
                       positions = what.first + what.n_tokens;
    double worst = 0, largest = 0;
    for (const float x : v) largest = std::fmax(largest, std::fabs(static_cast<double>(x)));
    for (std::int64_t h = 0; h < what.n_heads; ++h) {
      std::vector<float> keys, values;  // of this head
      for (std::int64_t p = 0; p < positions; ++p)
        for (std::int64_t d = 0; d < dim; ++d) {
          const std::size_t at = static_cast<std::size_t>((p * what.n_kv_heads + h / group) * dim + d);
          keys.push_back(k[at]);
          values.push_back(v[at]);
        }
      for (std::int64_t t = 0; t < what.n_tokens; ++t) {
        const std::int64_t last = what.first + t;
        const std::int64_t first = what.window > 0 ? std::max<std::int64_t>(0, last - what.window + 1) : 0;
        const std::size_t row = static_cast<std::size_t>((t * what.n_heads + h) * dim);
        const std::vector<double> expected = kernels::reference::attention(
            q.data() + row, keys.data(), values.data(), dim, first, last,
            static_cast<double>(1 / std::sqrt(static_cast<float>(dim))), static_cast<double>(what.softcap),
            what.sinks ? &sinks[static_cast<std::size_t>(h)] : nullptr);
        for (std::size_t d = 0; d < static_cast<std::size_t>(dim); ++d) {
          const double e = std::fabs(static_cast<double>(out[row + d]) - expected[d]) / largest;
          if (!(e <= worst)) worst = e;
        }
      }
    }
    return worst;
  }

  problem what;
  std::vector<float> k, v;  // [positions, n_kv_heads, head_dim], as stored
  std::vector<float> q;     // [n_tokens, n_heads, head_dim]
  std::vector<float> sinks;
  std::vector<aligned_array<std::byte>> storage;
  std::vector<std::byte*> pages;
};

const std::vector<problem>& shapes() {
  static const std::vector<problem> all = {
      {1, 1, 64, 0, 1},
      {1, 1, 64, 63, 2},
      {2, 2, 32, 0, 70},
      {4, 1, 8, 130, 3},
      {8, 1, 64, 200, 1},
      {8, 2, 80, 64, 5},
      {6, 2, 96, 50, 40},
      {14, 2, 40, 100, 20},
      {8, 8, 128, 127, 9},
      {3, 1, 256, 300, 2},
      {71, 1, 24, 90, 2},
      {40, 1, 16, 60, 8},
      {4, 2, 64, 10, 150, dtype::f32},
      {5, 5, 72, 129, 4, dtype::f32},
      {4, 2, 64, 10, 150, dtype::f16, 17},
      {4, 2, 64, 300, 3, dtype::f16, 64},
      {4, 2, 64, 0, 200, dtype::f16, 100},
      {2, 1, 64, 500, 1, dtype::f16, 1},
      {4, 2, 64, 100, 20, dtype::f16, 0, 5.0f},
      {4, 4, 48, 100, 20, dtype::f32, 40, 30.0f, true},
      {8, 2, 64, 0, 70, dtype::f16, 0, 0, true},
      {8, 2, 64, 400, 1, dtype::f16, 128, 0, true},
  };
  return all;
}

template <class Body>
void for_each_case(Body body) {
  for (const kernels::cluster isa : runnable_clusters())
    for (const problem& s : shapes()) {
      CAPTURE(name_of(isa), s.n_heads, s.n_kv_heads, s.head_dim, s.first, s.n_tokens, to_string(s.kv_type), s.window,
              s.softcap, s.sinks);
      body(kernels::select(isa), s);
    }
}

}  // namespace

TEST_CASE("attention equals its reference", "[kernels][attention]") {
  random_source random(21);
  for_each_case([&](const kernel_set& set, const problem& s) {
    cache c(set, s, random);
    CHECK(c.error(c.run(set, s.n_tokens)) <= tolerance::attention);
  });
}

TEST_CASE("a token's attention does not depend on the tokens around it", "[kernels][attention]") {
  random_source random(22);
  for_each_case([&](const kernel_set& set, const problem& s) {
    cache c(set, s, random);
    const std::vector<float> all = c.run(set, s.n_tokens);
    CHECK(c.run(set, 1) == all);
    CHECK(c.run(set, 7) == all);
  });
}

TEST_CASE("attention survives scores that overflow an exponential", "[kernels][attention]") {
  random_source random(23);
  for (const kernels::cluster isa : runnable_clusters()) {
    CAPTURE(name_of(isa));
    const problem s{2, 1, 64, 150, 4};
    cache c(kernels::select(isa), s, random);
    for (float& x : c.q) x *= 300;  // scores of some hundreds: one position takes nearly all the weight
    const std::vector<float> out = c.run(kernels::select(isa), 4);
    for (const float x : out) CHECK(std::isfinite(x));
    CHECK(c.error(out) <= 50 * tolerance::attention);
  }
}
