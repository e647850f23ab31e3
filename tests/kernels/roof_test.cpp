// Bursts have no results; what can be checked is that they run on every cluster and count what they did.
#include "kernels/roof/roof.hpp"

#include "flywheel/core/isa.hpp"
#include "kernel_test.hpp"

using namespace flywheel;
using namespace flywheel::kernels;

TEST_CASE("bursts count operations in proportion to rounds", "[kernels][roof]") {
  for (const cluster isa : test::runnable_clusters()) {
    CAPTURE(test::name_of(isa));
    const kernel_set& set = select(isa);
    for (const auto burst : {set.int8_dots, set.f32_fmas}) {
      const double one = burst(1);
      CHECK(one >= roof_chains * 2);
      CHECK(burst(0) == 0);
      CHECK(burst(100) == 100 * one);
    }
    const double bf16 = set.bf16_dots(1);  // 0 where the CPU has none
    CHECK(set.bf16_dots(100) == 100 * bf16);
  }
  CHECK(select(cluster::generic).bf16_dots(1) == 0);
}

TEST_CASE("wider clusters do more per instruction", "[kernels][roof]") {
  const double narrow = select(cluster::generic).int8_dots(1);
  for (const cluster isa : test::runnable_clusters())
    if (isa != cluster::generic) CHECK(select(isa).int8_dots(1) > narrow);
}

TEST_CASE("a pass reads what it is given and nothing else", "[kernels][roof]") {
  for (const cluster isa : test::runnable_clusters()) {
    CAPTURE(test::name_of(isa));
    test::aligned_array<std::byte> data(4096);  // address sanitizer sees what is read beyond
    for (const std::size_t bytes : {0, 512, 1024, 4096})
      CHECK(select(isa).read_pass(data.data(), bytes) == static_cast<double>(bytes));
  }
}
