// Activations, norms, rotation and conversions against their references, on every cluster this CPU can run.
#include <limits>

#include "kernel_test.hpp"
#include "kernels/activation/reference.hpp"
#include "kernels/convert/reference.hpp"
#include "kernels/norm/reference.hpp"
#include "kernels/rope/reference.hpp"
#include "tolerances.hpp"

using namespace flywheel;
using namespace flywheel::test;
using kernels::kernel_set;

namespace {

template <class Body>
void for_each_set(Body body) {
  for (const kernels::cluster isa : runnable_clusters()) {
    CAPTURE(name_of(isa));
    body(kernels::select(isa));
  }
}

/// Lengths around every vector width.
std::vector<std::int64_t> lengths() {
  std::vector<std::int64_t> result;
  for (std::int64_t n = 1; n <= 70; ++n) result.push_back(n);
  for (const std::int64_t n : {127, 128, 129, 200, 576, 2048, 4096, 5000}) result.push_back(n);
  return result;
}

double as_double(float x) { return static_cast<double>(x); }

constexpr activation all_activations[] = {activation::silu, activation::gelu_tanh, activation::relu,
                                          activation::sigmoid, activation::clamped_swish};

/// What the activation's result may be off by.
double allowed(activation kind, float x, double expected) {
  const double v = as_double(x);
  const double exponent = kind == activation::silu || kind == activation::sigmoid ? v
                          : kind == activation::gelu_tanh                         ? 1.6 * (v + 0.0447 * v * v * v)
                          : kind == activation::clamped_swish                     ? 1.702 * std::fmin(v, 7)
                                                                                  : 0;
  return tolerance::activation * (1 + std::fabs(exponent) / 3) * std::fabs(expected);
}

/// Values at which activations are interesting: all exponents, both signs, and the range where exp under- and
/// overflows.
std::vector<float> activation_inputs() {
  std::vector<float> x = {0.0f, -0.0f, 1e-45f, -1e-45f, 1e-38f, 87.3f, -87.3f, 88.8f, -88.8f, 104.0f, -104.0f, 1e30f};
  for (int i = -2000; i <= 2000; ++i) x.push_back(static_cast<float>(i) * 0.0537f);
  for (float p = 1e-40f; p < 1e3f; p *= 1.7f) {
    x.push_back(p);
    x.push_back(-p);
  }
  return x;
}

}  // namespace

TEST_CASE("activations equal their reference", "[kernels][activation]") {
  const std::vector<float> x = activation_inputs();
  const std::int64_t n = static_cast<std::int64_t>(x.size());
  for_each_set([&](const kernel_set& set) {
    for (const activation kind : all_activations) {
      std::vector<float> y(x.size());
      set.activate(kind, x.data(), n, y.data());
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double expected = kernels::reference::activate(kind, as_double(x[i]));
        CAPTURE(static_cast<int>(kind), x[i]);
        // Below 1e-36 the exponential is beyond f32 or a denormal.
        if (std::fabs(expected) > 1e-36 || x[i] == 0)
          CHECK(std::fabs(as_double(y[i]) - expected) <= allowed(kind, x[i], expected));
        else
          CHECK(std::fabs(as_double(y[i])) <= 1e-36 + std::fabs(as_double(x[i])) * 1e-38);
      }
      float bad[3] = {NAN, INFINITY, -INFINITY}, out[3];
      set.activate(kind, bad, 3, out);
      CHECK(std::isnan(out[0]));
      if (kind == activation::clamped_swish)
        CHECK(std::fabs(out[1] - 7) < 1e-4f);
      else if (kind == activation::sigmoid)
        CHECK((out[1] == 1 && out[2] == 0));
      else
        CHECK(out[1] == INFINITY);
    }
  });
}

TEST_CASE("gated activations multiply, in place too, at every length", "[kernels][activation]") {
  random_source random(11);
  for_each_set([&](const kernel_set& set) {
    for (const std::int64_t n : lengths())
      for (const activation kind : all_activations) {
        const std::size_t size = static_cast<std::size_t>(n);
        const std::vector<float> gate = random.numbers(size, 2), up = random.numbers(size);
        std::vector<float> y(size + 1, 77.0f), over_gate = gate, over_up = up;
        set.glu(kind, gate.data(), up.data(), n, y.data());
        set.glu(kind, over_gate.data(), up.data(), n, over_gate.data());
        set.glu(kind, gate.data(), over_up.data(), n, over_up.data());
        CAPTURE(n, static_cast<int>(kind));
        bool close = true;
        for (std::size_t i = 0; i < size; ++i) {
          const double expected = kernels::reference::glu(kind, as_double(gate[i]), as_double(up[i]));
          close =
              close &&
              std::fabs(as_double(y[i]) - expected) <= 1e-7 * std::fabs(expected) + allowed(kind, gate[i], expected) &&
              y[i] == over_gate[i] && y[i] == over_up[i];
        }
        CHECK(close);
        CHECK(y[size] == 77.0f);
      }
  });
}

TEST_CASE("sums and multiples of rows", "[kernels][activation]") {
  random_source random(12);
  for_each_set([&](const kernel_set& set) {
    for (const std::int64_t n : lengths()) {
      const std::size_t size = static_cast<std::size_t>(n);
      const std::vector<float> a = random.numbers(size), b = random.numbers(size);
      std::vector<float> sum(size + 1, 77.0f), scaled = sum, added = b;
      added.push_back(77.0f);
      set.add(a.data(), b.data(), n, sum.data());
      set.scale(a.data(), 0.3f, n, scaled.data());
      set.scaled_add(a.data(), 0.3f, n, added.data());
      CAPTURE(n);
      bool close = true;
      for (std::size_t i = 0; i < size; ++i) {
        close = close && sum[i] == a[i] + b[i] && scaled[i] == 0.3f * a[i];
        const double expected = as_double(b[i]) + as_double(0.3f) * as_double(a[i]);
        close = close && std::fabs(as_double(added[i]) - expected) <=
                             tolerance::element * (std::fabs(as_double(b[i])) + std::fabs(as_double(a[i])));
      }
      CHECK(close);
      CHECK((sum[size] == 77.0f && scaled[size] == 77.0f && added[size] == 77.0f));
    }
  });
}

TEST_CASE("soft-caps bend to their limit", "[kernels][activation]") {
  random_source random(14);
  for_each_set([&](const kernel_set& set) {
    for (const std::int64_t n : lengths()) {
      const std::size_t size = static_cast<std::size_t>(n);
      std::vector<float> x = random.numbers(size, 20), y(size + 1, 77.0f);
      set.softcap(x.data(), 30.0f, n, y.data());
      bool close = true;
      for (std::size_t i = 0; i < size; ++i)
        close = close && std::fabs(as_double(y[i]) - 30 * std::tanh(as_double(x[i]) / 30)) < 1e-5;
      set.softcap(x.data(), 30.0f, n, x.data());
      CAPTURE(n);
      CHECK(close);
      CHECK(y[size] == 77.0f);
      CHECK(std::equal(x.begin(), x.end(), y.begin()));
    }
    const float far[] = {1e30f, -INFINITY, NAN};
    float out[3];
    set.softcap(far, 5.0f, 3, out);
    CHECK(out[0] == 5.0f);
    CHECK(out[1] == -5.0f);
    CHECK(std::isnan(out[2]));
  });
}

TEST_CASE("RMS norm equals its reference", "[kernels][norm]") {
  random_source random(13);
  for_each_set([&](const kernel_set& set) {
    for (const std::int64_t n : lengths())
      for (const float size_of : {1.0f, 1e-12f, 1e12f}) {
        const std::size_t size = static_cast<std::size_t>(n);
        const std::vector<float> x = random.numbers(size, size_of), r = random.numbers(size, size_of);
        const std::vector<float> weight = random.numbers(size);
        const float* weights = n % 3 == 0 ? nullptr : weight.data();
        const float eps = 1e-5f;
        std::vector<double> expected(size);
        std::vector<float> y(size + 1, 77.0f), sum(size), z(size), plain(size);
        const auto close = [&](const std::vector<float>& got) {
          for (std::size_t i = 0; i < size; ++i)
            if (!(std::fabs(as_double(got[i]) - expected[i]) <= tolerance::norm * std::fabs(expected[i]))) return false;
          return true;
        };
        CAPTURE(n, size_of);
        kernels::reference::rms_norm(x.data(), weights, as_double(eps), n, expected.data());
        set.rms_norm(x.data(), weights, eps, n, y.data());
        CHECK(close(y));
        CHECK(y[size] == 77.0f);
        std::vector<float> in_place = x;
        set.rms_norm(in_place.data(), weights, eps, n, in_place.data());
        CHECK(std::equal(in_place.begin(), in_place.end(), y.begin()));

        for (std::size_t i = 0; i < size; ++i) plain[i] = x[i] + r[i];
        kernels::reference::rms_norm(plain.data(), weights, as_double(eps), n, expected.data());
        set.add_rms_norm(x.data(), r.data(), weights, eps, n, sum.data(), z.data());
        CHECK(sum == plain);
        CHECK(close(z));
        std::vector<float> aliased = r;
        set.add_rms_norm(x.data(), aliased.data(), weights, eps, n, aliased.data(), y.data());
        CHECK(aliased == plain);
        CHECK(std::equal(z.begin(), z.end(), y.begin()));
      }
    std::vector<float> zeros(64), y(64, 1.0f);
    set.rms_norm(zeros.data(), nullptr, 1e-5f, 64, y.data());
    CHECK(y == zeros);
  });
}

TEST_CASE("layer norm equals its reference, far from zero too", "[kernels][norm]") {
  random_source random(14);
  for_each_set([&](const kernel_set& set) {
    for (const std::int64_t n : lengths())
      for (const float center : {0.0f, 3.0f, 1000.0f}) {
        const std::size_t size = static_cast<std::size_t>(n);
        std::vector<float> x = random.numbers(size);
        for (float& one : x) one += center;
        const std::vector<float> weight = random.numbers(size), bias = random.numbers(size);
        const float* weights = n % 3 == 0 ? nullptr : weight.data();
        const float* biases = n % 2 == 0 ? nullptr : bias.data();
        std::vector<double> expected(size);
        std::vector<float> y(size + 1, 77.0f);
        kernels::reference::layer_norm(x.data(), weights, biases, 1e-5, n, expected.data());
        set.layer_norm(x.data(), weights, biases, 1e-5f, n, y.data());
        double deviation = 1e-5;  // of x, from the reference itself
        double mean = 0;
        for (const float one : x) mean += as_double(one) / static_cast<double>(n);
        for (const float one : x)
          deviation += (as_double(one) - mean) * (as_double(one) - mean) / static_cast<double>(n);
        deviation = std::sqrt(deviation);
        CAPTURE(n, center);
        bool close = true;
        for (std::size_t i = 0; i < size; ++i) {
          const double w = weights ? std::fabs(as_double(weight[i])) : 1.0;
          const double b = biases ? std::fabs(as_double(bias[i])) : 0.0;
          const double scale = std::fabs(expected[i]) + b + w * (1 + 0.1 * as_double(center) / deviation);
          close = close && std::fabs(as_double(y[i]) - expected[i]) <= tolerance::layer_norm * scale;
        }
        CHECK(close);
        CHECK(y[size] == 77.0f);
      }
    std::vector<float> same(100, 5.0f), y(100);
    set.layer_norm(same.data(), nullptr, nullptr, 1e-5f, 100, y.data());
    for (const float one : y) CHECK(std::fabs(one) < 1e-3f);
  });
}

TEST_CASE("rotation equals its reference and leaves the rest alone", "[kernels][rope]") {
  random_source random(15);
  for_each_set([&](const kernel_set& set) {
    for (const rope_pairs pairs : {rope_pairs::adjacent, rope_pairs::halves})
      for (const std::int64_t n_rot : {2, 6, 8, 16, 20, 32, 40, 64, 80, 96, 128, 256}) {
        const std::int64_t heads = 3, stride = n_rot + 7;
        const std::vector<float> x = random.numbers(static_cast<std::size_t>(heads * stride));
        std::vector<float> cosines, sines, y = x;
        for (std::int64_t i = 0; i < n_rot / 2; ++i) {
          const float angle = random.number(3);
          cosines.push_back(std::cos(angle));
          sines.push_back(std::sin(angle));
        }
        set.rope(y.data(), heads, stride, n_rot, cosines.data(), sines.data(), pairs);
        CAPTURE(n_rot, static_cast<int>(pairs));
        bool close = true;
        for (std::int64_t h = 0; h < heads; ++h) {
          std::vector<double> expected(static_cast<std::size_t>(n_rot));
          const float* head = x.data() + h * stride;
          kernels::reference::rope(head, n_rot, cosines.data(), sines.data(), pairs, expected.data());
          for (std::int64_t i = 0; i < stride; ++i) {
            const float got = y[static_cast<std::size_t>(h * stride + i)];
            if (i >= n_rot)
              close = close && got == head[i];
            else
              close = close && std::fabs(as_double(got) - expected[static_cast<std::size_t>(i)]) <=
                                   tolerance::rope * 12;  // numbers() are at most 6, a pair 12
          }
        }
        CHECK(close);
      }
  });
}

TEST_CASE("f32 to f16 equals the codec for all kinds of numbers", "[kernels][convert]") {
  random_source random(16);
  std::vector<float> x = {0.0f,     -0.0f,        65504.0f,     65519.9f, 65520.0f,        1e9f,
                          INFINITY, -INFINITY,    0x1p-24f,     0x1p-25f, 0x1.000002p-25f, 0x1.8p-24f,
                          0x1p-14f, 0x1.ffcp-15f, 0x1.ffep-15f, 1e-40f};
  for (std::uint32_t h = 0; h < 65536; h += 7) {  // values of f16, what lies half way, and just beside it
    const float value = formats::f16_to_f32(static_cast<std::uint16_t>(h));
    const float next = formats::f16_to_f32(static_cast<std::uint16_t>(h + 1));
    x.insert(x.end(), {value, (value + next) / 2, std::nextafter((value + next) / 2, 0.0f)});
  }
  for (int i = 0; i < 100000; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(random.byte()) << 24 |
                               static_cast<std::uint32_t>(random.byte()) << 16 |
                               static_cast<std::uint32_t>(random.byte()) << 8 | random.byte();
    x.push_back(std::bit_cast<float>(bits));
  }
  for_each_set([&](const kernel_set& set) {
    std::vector<std::uint16_t> got(x.size());
    set.f32_to_f16(x.data(), static_cast<std::int64_t>(x.size()), got.data());
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::uint16_t expected = kernels::reference::f32_to_f16(x[i]);
      if (std::isnan(x[i]) ? (got[i] & 0x7fff) <= 0x7c00 : got[i] != expected) ++wrong;
    }
    CHECK(wrong == 0);
    for (std::int64_t n = 1; n < 40; ++n) {
      std::vector<std::uint16_t> part(static_cast<std::size_t>(n) + 1, 0xabcd);
      set.f32_to_f16(x.data(), n, part.data());
      CHECK(std::equal(part.begin(), part.end() - 1, got.begin()));
      CHECK(part.back() == 0xabcd);
    }
  });
}

TEST_CASE("f32 to int8 codes and scales equals the reference", "[kernels][convert]") {
  random_source random(18);
  for_each_set([&](const kernel_set& set) {
    for (const std::int64_t group : {32, 96, 128, 1000})
      for (std::int64_t n = 1; n < 400; n += n < 70 ? 1 : 13) {
        std::vector<float> x(static_cast<std::size_t>(n));
        for (float& one : x) one = random.number(3.0f);
        if (n % 7 == 0) x[x.size() / 2] = 1e8f;
        if (n % 11 == 0) x[x.size() / 3] = n % 2 ? INFINITY : NAN;
        if (n % 5 == 0) std::fill_n(x.begin(), std::min<std::int64_t>(n, group), n % 2 ? 0.0f : 1e-31f);
        const auto groups = static_cast<std::size_t>((n + group - 1) / group);
        std::vector<std::int8_t> codes(x.size() + 1, 99), wanted_codes(x.size());
        std::vector<float> scales(groups + 1, 99.0f), wanted_scales(groups);
        set.f32_to_q8(x.data(), n, group, codes.data(), scales.data());
        kernels::reference::f32_to_q8(x.data(), n, group, wanted_codes.data(), wanted_scales.data());
        CHECK(std::equal(wanted_codes.begin(), wanted_codes.end(), codes.begin()));
        bool same = codes.back() == 99 && scales.back() == 99.0f;
        for (std::size_t i = 0; i < groups; ++i)
          same = same && (std::isnan(wanted_scales[i]) ? std::isnan(scales[i]) : scales[i] == wanted_scales[i]);
        CHECK(same);
      }
  });
}

TEST_CASE("rows of every format decode as by the codec", "[kernels][convert]") {
  random_source random(17);
  for (const kernels::cluster isa : runnable_clusters())
    for (const dtype_info& type : dtype_table) {
      const kernels::to_f32_fn convert = kernels::find_to_f32(isa, type.type);
      if (!convert) continue;
      const std::int64_t step = type.block_elements;
      for (std::int64_t blocks = 1; blocks < 40; ++blocks) {
        const std::int64_t n = blocks * step;
        std::vector<std::byte> row(row_bytes(type.type, n) + 1);
        for (std::byte& b : row) b = static_cast<std::byte>(random.byte());
        std::vector<float> expected(static_cast<std::size_t>(n)), got(static_cast<std::size_t>(n) + 1, 77.0f);
        kernels::reference::to_f32(type.type)(row.data() + 1, n, expected.data());  // rows need not be aligned
        convert(row.data() + 1, n, got.data());
        bool same = true;
        for (std::size_t i = 0; i < expected.size(); ++i) {
          if (std::isnan(expected[i]))
            same = same && std::isnan(got[i]);
          else
            same = same && std::bit_cast<std::uint32_t>(expected[i]) == std::bit_cast<std::uint32_t>(got[i]);
        }
        CAPTURE(name_of(isa), type.name, n);
        CHECK(same);
        CHECK(got.back() == 77.0f);
      }
    }
}
