#include "flywheel/formats/formats.hpp"
#include "kernel_test.hpp"
#include "kernels/attention/reference.hpp"
#include "kernels/attention/rotation.hpp"
#include "kernels/matmul/reference.hpp"
#include "tolerances.hpp"

using namespace flywheel;
using namespace flywheel::test;
using kernels::kernel_set;
using kernels::kv_page_tokens;

namespace {

struct problem {
  std::int64_t n_heads, n_kv_heads, head_dim, first, n_tokens;
  std::int64_t window = 0;
  float softcap = 0;
  bool sinks = false;
  dtype kv_type = dtype::f16;
};

/// What a cache of this type keeps of some numbers: the format's own encoding of each 32 of a head.
std::vector<float> as_stored(const std::vector<float>& x, dtype type) {
  std::vector<std::byte> bytes(row_bytes(type, static_cast<std::int64_t>(x.size())));
  std::vector<float> y(x.size());
  const std::int64_t n = static_cast<std::int64_t>(x.size());
  formats::find_encoder(type)(x.data(), n, bytes.data());
  formats::find_decoder(type)(bytes.data(), n, y.data());
  return y;
}

/// Heads as quantized pages of the type see them.
std::vector<float> turned(std::vector<float> x, dtype type, std::int64_t head_dim) {
  if (kernels::is_quantized_kv(type))
    for (std::size_t i = 0; i < x.size(); i += static_cast<std::size_t>(head_dim))
      kernels::rotate_head(x.data() + i, head_dim);
  return x;
}

/// Queries, and a cache of first + n_tokens positions whose unused slots hold NaN.
struct cache {
  cache(const kernel_set& set, const problem& s, random_source& random) : what(s) {
    const std::int64_t positions = s.first + s.n_tokens;
    const std::size_t row = static_cast<std::size_t>(s.n_kv_heads * s.head_dim);
    raw_k = random.numbers(static_cast<std::size_t>(positions) * row);
    raw_v = random.numbers(static_cast<std::size_t>(positions) * row);
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
    store(set, 0, cut);
    store(set, cut, positions);
    k = as_stored(turned(raw_k, s.kv_type, s.head_dim), s.kv_type == dtype::q4_0 ? dtype::q5_0 : s.kv_type);
    v = as_stored(turned(raw_v, s.kv_type, s.head_dim), s.kv_type);
    round_queries();
  }

  void store(const kernel_set& set, std::int64_t begin, std::int64_t end) {
    const std::int64_t row = what.n_kv_heads * what.head_dim;
    kernels::store_kv_args args;
    args.k = raw_k.data() + begin * row;
    args.v = raw_v.data() + begin * row;
    args.k_stride = args.v_stride = row;
    args.kv_pages = pages.data();
    args.kv_type = what.kv_type;
    args.n_tokens = end - begin;
    args.n_kv_heads = what.n_kv_heads;
    args.head_dim = what.head_dim;
    args.first_position = begin;
    for (std::int64_t h = 0; h < what.n_kv_heads; ++h) set.store_kv(args, h);
  }

  void round_queries() {
    seen_q = turned(q, what.kv_type, what.head_dim);
    if (kernels::is_quantized_kv(what.kv_type))
      for (std::size_t i = 0; i < q.size(); i += 32)
        kernels::reference::quantize_block32(seen_q.data() + i, seen_q.data() + i);
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
        std::vector<double> expected = kernels::reference::attention(
            seen_q.data() + row, keys.data(), values.data(), dim, first, last,
            static_cast<double>(1 / std::sqrt(static_cast<float>(dim))), static_cast<double>(what.softcap),
            what.sinks ? &sinks[static_cast<std::size_t>(h)] : nullptr);
        if (kernels::is_quantized_kv(what.kv_type))
          expected =
              kernels::reference::rotate(expected, static_cast<std::size_t>(kernels::kv_rotation_block(what.head_dim)));
        for (std::size_t d = 0; d < static_cast<std::size_t>(dim); ++d) {
          const double e = std::fabs(static_cast<double>(out[row + d]) - expected[d]) / largest;
          if (!(e <= worst)) worst = e;
        }
      }
    }
    return worst;
  }

  problem what;
  std::vector<float> raw_k, raw_v;  // [positions, n_kv_heads, head_dim]
  std::vector<float> k, v;          // the same, as stored
  std::vector<float> q;             // [n_tokens, n_heads, head_dim]
  std::vector<float> seen_q;        // the same, rounded as it is beside quantized keys
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
      {4, 2, 64, 10, 150},
      {5, 5, 72, 129, 4},
      {4, 2, 64, 10, 150, 17},
      {4, 2, 64, 300, 3, 64},
      {4, 2, 64, 0, 200, 100},
      {2, 1, 64, 500, 1, 1},
      {4, 2, 64, 100, 20, 0, 5.0f},
      {4, 4, 48, 100, 20, 40, 30.0f, true},
      {8, 2, 64, 0, 70, 0, 0, true},
      {8, 2, 64, 400, 1, 128, 0, true},
  };
  return all;
}

constexpr dtype kv_types[] = {dtype::f16, dtype::f32, dtype::q8_0, dtype::q4_0};

/// Every cluster, shape and type that fits it.
template <class Body>
void for_each_case(Body body) {
  for (const kernels::cluster isa : runnable_clusters())
    for (problem s : shapes())
      for (const dtype type : kv_types) {
        if (s.head_dim % kernels::kv_granularity(type) != 0) continue;
        s.kv_type = type;
        CAPTURE(name_of(isa), s.n_heads, s.n_kv_heads, s.head_dim, s.first, s.n_tokens, to_string(s.kv_type), s.window,
                s.softcap, s.sinks);
        body(kernels::select(isa), s);
      }
}

double tolerance_of(dtype type) {
  return kernels::is_quantized_kv(type) ? tolerance::attention_quantized : tolerance::attention;
}

}  // namespace

TEST_CASE("heads rotate as the Hadamard matrix says, and back", "[kernels][attention]") {
  random_source random(3);
  for (const std::int64_t dim : {32, 64, 96, 128, 160, 192, 256, 320, 512}) {
    CAPTURE(dim);
    const std::vector<float> x = random.numbers(static_cast<std::size_t>(dim));
    std::vector<float> y = x;
    kernels::rotate_head(y.data(), dim);
    const auto n = static_cast<std::size_t>(kernels::kv_rotation_block(dim));
    CHECK(n == std::min<std::size_t>(256, static_cast<std::size_t>(dim & -dim)));
    const std::vector<double> want = kernels::reference::rotate({x.begin(), x.end()}, n);
    for (std::size_t i = 0; i < y.size(); ++i) CHECK(std::fabs(static_cast<double>(y[i]) - want[i]) < 1e-5);
    kernels::rotate_head(y.data(), dim);
    for (std::size_t i = 0; i < y.size(); ++i) CHECK(std::fabs(y[i] - x[i]) < 1e-5F);
  }
}

TEST_CASE("attention equals its reference", "[kernels][attention]") {
  random_source random(21);
  for_each_case([&](const kernel_set& set, const problem& s) {
    cache c(set, s, random);
    CHECK(c.error(c.run(set, s.n_tokens)) <= tolerance_of(s.kv_type));
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

TEST_CASE("attention over random shapes", "[kernels][attention]") {
  random_source random(24);
  for (const kernels::cluster isa : runnable_clusters())
    for (int round = 0; round < 60; ++round) {
      problem s{};
      s.kv_type = kv_types[round % 4];
      s.n_kv_heads = 1 + random.below(3);
      s.n_heads = s.n_kv_heads * (1 + random.below(9));
      s.head_dim = kernels::kv_granularity(s.kv_type) * (1 + random.below(4));
      s.first = random.below(200);
      s.n_tokens = 1 + random.below(30);
      s.window = random.below(3) == 0 ? 1 + random.below(150) : 0;
      s.softcap = random.below(3) == 0 ? 4.0f : 0.0f;
      s.sinks = random.below(3) == 0;
      CAPTURE(name_of(isa), s.n_heads, s.n_kv_heads, s.head_dim, s.first, s.n_tokens, to_string(s.kv_type), s.window,
              s.softcap, s.sinks);
      cache c(kernels::select(isa), s, random);
      const std::vector<float> out = c.run(kernels::select(isa), s.n_tokens);
      CHECK(c.error(out) <= tolerance_of(s.kv_type));
      CHECK(c.run(kernels::select(isa), 1 + random.below(s.n_tokens)) == out);
    }
}

TEST_CASE("attention survives scores that overflow an exponential", "[kernels][attention]") {
  random_source random(23);
  for (const kernels::cluster isa : runnable_clusters())
    for (const dtype type : kv_types) {
      CAPTURE(name_of(isa), to_string(type));
      problem s{2, 1, 64, 150, 4};
      s.kv_type = type;
      cache c(kernels::select(isa), s, random);
      for (float& x : c.q) x *= 300;  // scores of some hundreds: one position takes nearly all the weight
      c.round_queries();
      const std::vector<float> out = c.run(kernels::select(isa), 4);
      for (const float x : out) CHECK(std::isfinite(x));
      CHECK(c.error(out) <= 50 * tolerance::attention);
    }
}

TEST_CASE("queries, keys and values that are not numbers harm only who sees them", "[kernels][attention]") {
  random_source random(25);
  const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, 1e-45f, 0};
  for (const kernels::cluster isa : runnable_clusters())
    for (const dtype type : kv_types)
      for (const float x : odd) {
        CAPTURE(name_of(isa), to_string(type), x);
        problem s{6, 2, 64, 100, 40};
        s.kv_type = type;
        const kernel_set& set = kernels::select(isa);
        cache c(set, s, random);
        const std::vector<float> before = c.run(set, s.n_tokens);
        // Keys and values from the 20th token on, and a query of the 10th.
        const std::size_t row = static_cast<std::size_t>(s.n_kv_heads * s.head_dim);
        for (std::size_t i = 0; i < 5 * row; ++i) {
          c.raw_k[120 * row + i] = random.below(2) ? x : -x;
          c.raw_v[120 * row + i] = random.below(2) ? x : -x;
        }
        c.store(set, 0, s.first + s.n_tokens);
        c.q[static_cast<std::size_t>(10 * s.n_heads * s.head_dim)] = x;
        const std::vector<float> after = c.run(set, s.n_tokens);
        const std::size_t token = static_cast<std::size_t>(s.n_heads * s.head_dim);
        for (std::size_t t = 0; t < 20; ++t) {
          const bool other_query = t == 10;
          bool same = true;
          // The changed query is of head 0.
          for (std::size_t i = other_query ? static_cast<std::size_t>(s.head_dim) : 0; i < token; ++i)
            same &= before[t * token + i] == after[t * token + i];
          CHECK(same);
        }
      }
}
