// Encoders of every cluster against the same algorithms with one lane: as good, though not the same bits, since sums
// are rounded in another order.
#include <cmath>
#include <vector>

#include "flywheel/formats/formats.hpp"
#include "kernels/quantize/vector.hpp"
#include "tests/kernels/kernel_test.hpp"

using namespace flywheel;
using namespace flywheel::test;

TEST_CASE("encoders of every cluster are as good as the reference", "[kernels]") {
  random_source random(31);
  constexpr std::int64_t rows = 4;
  const std::vector<float> x = random.numbers(rows * 768);
  std::vector<float> importance = random.numbers(768);
  for (float& one : importance) one = std::exp(2 * one);
  int formats_seen = 0;
  for (const dtype_info& facts : dtype_table) {
    // No whole number of vectors: three blocks of 256, or a few values more than whole vectors.
    const std::int64_t cols = facts.kind == dtype_kind::row ? 68 - facts.block_elements : 768;
    for (const formats::rounding method :
         {formats::rounding::nearest, formats::rounding::search, formats::rounding::greedy})
      for (const bool weighted : {false, true}) {
        const auto error_of = [&](kernels::quantize_fn quantize, double& error) {
          std::vector<std::byte> out(rows * row_bytes(facts.type, cols));
          const kernels::quantize_args args{
              facts.type, method, x.data(), rows, cols, weighted ? importance.data() : nullptr, 0.125F, out.data()};
          if (!quantize(args)) return false;
          std::vector<float> y(static_cast<std::size_t>(rows * cols));
          REQUIRE(formats::decode(tensor_view(facts.type, {rows, cols}, out.data()), y));
          error = 0;
          for (std::size_t i = 0; i < y.size(); ++i) {
            const double e = static_cast<double>(x[i]) - static_cast<double>(y[i]);
            error += e * e * (weighted ? static_cast<double>(importance[i % static_cast<std::size_t>(cols)]) : 1);
          }
          return true;
        };
        double expected = 0;
        if (!error_of(&kernels::quantization<formats::encoding::scalar_lanes>::run, expected)) continue;
        ++formats_seen;
        REQUIRE(expected > 0);
        for (const kernels::cluster isa : runnable_clusters()) {
          INFO(facts.name << " " << name_of(isa) << " method " << static_cast<int>(method) << " weighted " << weighted);
          double error = 0;
          REQUIRE(error_of(kernels::select(isa).quantize, error));
          CHECK(std::sqrt(error / expected) == Approx(1).epsilon(method == formats::rounding::greedy ? 0.002 : 0.001));
        }
      }
  }
  CHECK(formats_seen == 22 * 6);
}
