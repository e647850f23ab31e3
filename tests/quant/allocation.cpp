// Choosing types under a number of bytes.
#include "src/quant/allocation.hpp"

#include "support/catch.hpp"
#include "support/tiny_model.hpp"

namespace {

using namespace flywheel;
using quant::choice;

struct outcome {
  std::uint64_t bytes = 0;
  double error = 0;
};
outcome sum(const std::vector<std::vector<choice>>& tensors, const std::vector<std::size_t>& picked) {
  outcome o;
  for (std::size_t i = 0; i < picked.size(); ++i) {
    o.bytes += tensors[i][picked[i]].bytes;
    o.error += tensors[i][picked[i]].error;
  }
  return o;
}

/// The best of all combinations.
double best_error(const std::vector<std::vector<choice>>& tensors, std::uint64_t budget) {
  double best = 1e300;
  std::vector<std::size_t> picked(tensors.size(), 0);
  for (;;) {
    const outcome o = sum(tensors, picked);
    if (o.bytes <= budget) best = std::min(best, o.error);
    std::size_t i = 0;
    while (i < picked.size() && ++picked[i] == tensors[i].size()) picked[i++] = 0;
    if (i == picked.size()) return best;
  }
}

TEST_CASE("Allocation is close to the best there is, and within its bytes") {
  test::tiny_random random(7);
  double ratio = 0;
  int count = 0;
  for (int trial = 0; trial < 30; ++trial) {
    std::vector<std::vector<choice>> tensors;
    for (int t = 0; t < 6; ++t) {
      const double size = 100 + 900 * static_cast<double>(random.uniform()),
                   matters = static_cast<double>(random.uniform());
      std::vector<choice> all;
      for (const double bits : {2.0, 3.0, 4.0, 5.0, 8.0})
        all.push_back({dtype::f16, static_cast<std::uint64_t>(size * bits / 8),
                       matters * std::exp2(-2 * bits) * (0.5 + static_cast<double>(random.uniform()))});
      tensors.push_back(all);
    }
    const std::uint64_t least = quant::least_bytes(tensors);
    for (const double factor : {1.0, 1.3, 1.9, 9.0}) {
      const auto budget = static_cast<std::uint64_t>(factor * static_cast<double>(least));
      const auto picked = quant::allocate(tensors, budget);
      REQUIRE(picked.has_value());
      const outcome o = sum(tensors, *picked);
      CHECK(o.bytes <= budget);
      ratio += o.error / best_error(tensors, budget);
      ++count;
    }
    CHECK_FALSE(quant::allocate(tensors, least - 1).has_value());
  }
  CHECK(ratio / count < 1.05);
}

TEST_CASE("A choice that is worse and larger is never taken, a cheaper equal one is") {
  const std::vector<std::vector<choice>> tensors = {
      {{dtype::q8_0, 80, 1.0}, {dtype::q4_0, 40, 2.0}, {dtype::q4_1, 50, 3.0}, {dtype::q5_0, 60, 1.0}}};
  CHECK((*quant::allocate(tensors, 1000))[0] == 3);
  CHECK((*quant::allocate(tensors, 59))[0] == 1);
}

}  // namespace
