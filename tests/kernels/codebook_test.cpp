// Searching codebooks: every cluster against sums in double precision over a small codebook.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "flywheel/formats/codebooks.hpp"
#include "tests/kernels/kernel_test.hpp"

using namespace flywheel;
using namespace flywheel::test;

TEST_CASE("terms of a codebook, the least error and the nearest point are those of the formula", "[kernels]") {
  random_source random(5);
  for (const int dims : {4, 8})
    for (const std::int64_t points : {64, 192})
      for (const bool flips : {false, true}) {
        constexpr std::int64_t groups = 7;  // whole sets of groups and some left
        const auto width = static_cast<std::size_t>(dims), count = static_cast<std::size_t>(points);
        std::vector<std::int8_t> levels(width * count);
        for (std::int8_t& level : levels) level = static_cast<std::int8_t>(1 + random.below(62));
        std::vector<float> v = random.numbers(groups * width), w = random.numbers(groups * width);
        for (float& one : v) one = -std::fabs(one);
        for (float& one : w) one = std::fabs(one);
        for (const kernels::cluster isa : runnable_clusters()) {
          INFO(name_of(isa) << " dims " << dims << " points " << points << " flips " << flips);
          const kernels::kernel_set& set = kernels::select(isa);
          std::vector<float> linear(groups * count), square(groups * count), flipped(groups * count, -1.0F);
          set.codebook_terms(levels.data(), points, dims, v.data(), w.data(), groups, linear.data(), square.data(),
                             flips ? flipped.data() : nullptr);
          bool good = true;
          for (std::size_t g = 0; g < groups; ++g)
            for (std::size_t p = 0; p < count; ++p) {
              double first = 0, second = 0, cheapest = -std::numeric_limits<double>::infinity();
              for (std::size_t i = 0; i < width; ++i) {
                const double level = levels[i * count + p], product = static_cast<double>(v[g * width + i]) * level;
                first += product;
                second += static_cast<double>(w[g * width + i]) * level * level;
                cheapest = std::max(cheapest, product);
              }
              const auto near = [](float is, double should, double size) {
                return std::fabs(static_cast<double>(is) - should) <= 1e-6 * size;
              };
              good = good && near(linear[g * count + p], first, -first) && near(square[g * count + p], second, second);
              good = good && (flips ? near(flipped[g * count + p], first - 2 * cheapest, -first)
                                    : flipped[g * count + p] == -1.0F);
            }
          CHECK(good);
          const float scales[] = {0.001F, 0.01F, 0.02F, 0.05F, 0.4F};
          for (std::size_t g = 0; g < groups; ++g) {
            // A twin of the nearest point behind it: the first one counts.
            const std::int64_t one = set.codebook_nearest(&linear[g * count], &square[g * count], points, scales[2]);
            linear[g * count + count - 1] = linear[g * count + static_cast<std::size_t>(one)];
            square[g * count + count - 1] = square[g * count + static_cast<std::size_t>(one)];
            for (int n = 1; n <= 5; ++n) {
              float least[5] = {9, 9, 9, 9, 9};
              set.codebook_least(&linear[g * count], &square[g * count], points, scales, n, least);
              for (int k = 0; k < n; ++k) {
                double expected = std::numeric_limits<double>::infinity();
                std::size_t nearest = 0;
                for (std::size_t p = 0; p < count; ++p) {
                  const double here = static_cast<double>(linear[g * count + p]) +
                                      static_cast<double>(scales[k]) * static_cast<double>(square[g * count + p]);
                  if (here < expected) expected = here, nearest = p;
                }
                CHECK(static_cast<double>(least[k]) == Approx(expected).epsilon(1e-5));
                CHECK(set.codebook_nearest(&linear[g * count], &square[g * count], points, scales[k]) ==
                      static_cast<std::int64_t>(nearest));
              }
              for (int k = n; k < 5; ++k) CHECK(least[k] == 9);
            }
          }
        }
      }
}

TEST_CASE("the search of ternary points finds the least error over all of them", "[kernels]") {
  // Second half h has the first halves h, h + 1, ... h + 4 modulo 81; the rows of the table are filled up to eight.
  std::vector<std::uint16_t> low, first;
  for (unsigned h = 0; h < 81; ++h) {
    first.push_back(static_cast<std::uint16_t>(low.size()));
    for (unsigned i = 0; i < 8; ++i) low.push_back(static_cast<std::uint16_t>(16 * ((h + std::min(i, 4U)) % 81)));
  }
  first.push_back(static_cast<std::uint16_t>(low.size()));
  random_source random(6);
  for (int round = 0; round < 10; ++round) {
    const std::vector<float> v = random.numbers(8);
    std::vector<float> w = random.numbers(8);
    for (float& one : w) one = std::fabs(one);
    const float scales[] = {0.001F, 0.01F, 0.03F, 0.1F, 0.2F};
    for (const kernels::cluster isa : runnable_clusters()) {
      INFO(name_of(isa));
      std::vector<float> runs(81 * 16), least(16);
      kernels::select(isa).ternary_least({low.data(), first.data()}, v.data(), w.data(), scales, 5, runs.data(),
                                         least.data());
      for (std::size_t column = 0; column < 16; ++column) {
        const auto scale = static_cast<double>(scales[std::min<std::size_t>(column % 8, 4)]);
        const double shift = column < 8 ? 1 : -1;
        double expected = std::numeric_limits<double>::infinity(), of_runs = expected;
        for (unsigned h = 0; h < 81; ++h) {
          double here = std::numeric_limits<double>::infinity();
          for (unsigned i = 0; i < 5; ++i) {
            double error = 0;
            for (std::size_t k = 0; k < 8; ++k) {
              unsigned digits = k < 4 ? (h + i) % 81 : h;
              for (std::size_t n = k % 4; n > 0; --n) digits /= 3;
              const double m = scale * (8 * (static_cast<double>(digits % 3) - 1) + shift);
              error += m * (static_cast<double>(v[k]) + static_cast<double>(w[k]) * m);
            }
            here = std::min(here, error);
          }
          CHECK(static_cast<double>(runs[h * 16 + column]) == Approx(here).epsilon(1e-5).margin(1e-6));
          expected = std::min(expected, here);
          of_runs = std::min(of_runs, static_cast<double>(runs[h * 16 + column]));
        }
        CHECK(static_cast<double>(least[column]) == Approx(expected).epsilon(1e-5).margin(1e-6));
        CHECK(static_cast<double>(least[column]) == of_runs);
      }
    }
  }
}
