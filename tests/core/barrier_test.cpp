#include "flywheel/detail/barrier.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

#include "flywheel/core/executor.hpp"
#include "support/catch.hpp"

using namespace flywheel;

TEST_CASE("a barrier of one lets through", "[barrier]") {
  detail::barrier alone(1);
  for (int i = 0; i < 10; ++i) alone.arrive_and_wait();
  SUCCEED();
}

TEST_CASE("after a barrier everybody sees what everybody wrote before it", "[barrier]") {
  for (const unsigned threads : {2U, 3U, 6U}) {
    CAPTURE(threads);
    const auto pool = make_thread_team(threads).value();
    const unsigned n = pool->concurrency();  // 1 in a build without threads
    detail::barrier together(n);
    const std::size_t phases = 500;
    // Two generations of plain numbers: phase p reads generation p and writes p + 1, as layers of a graph do. A thread
    // that ran ahead or saw old numbers gives a wrong sum (and a race under ThreadSanitizer).
    std::vector<std::uint32_t> values[2] = {std::vector<std::uint32_t>(n, 1), std::vector<std::uint32_t>(n, 0)};
    pool->run(n, [&](unsigned worker) {
      for (std::size_t p = 0; p < phases; ++p) {
        std::uint32_t sum = worker;
        for (const std::uint32_t x : values[p % 2]) sum += x;
        values[(p + 1) % 2][worker] = sum;
        together.arrive_and_wait();
      }
    });
    std::vector<std::uint32_t> expected(n, 1);
    for (std::size_t p = 0; p < phases; ++p) {
      std::uint32_t sum = 0;
      for (const std::uint32_t x : expected) sum += x;
      for (unsigned w = 0; w < n; ++w) expected[w] = sum + w;
    }
    CHECK(values[phases % 2] == expected);
  }
}

TEST_CASE("a barrier serves one run after the other", "[barrier]") {
  const auto pool = make_thread_team(3).value();
  const unsigned n = pool->concurrency();
  detail::barrier together(n);
  int count = 0;
  for (int round = 0; round < 200; ++round)
    pool->run(n, [&](unsigned worker) {
      together.arrive_and_wait();
      if (worker == 0) ++count;
      together.arrive_and_wait();
      if (worker + 1 == n) ++count;
    });
  CHECK(count == 400);
}
