// Rounding with error feedback against its definition.
#include "kernels/feedback/feedback.hpp"

#include <algorithm>

#include "kernel_test.hpp"

using namespace flywheel;
using namespace flywheel::kernels;
using namespace flywheel::test;

namespace {

struct grid_case {
  const char* name;
  std::vector<float> levels;  ///< Ascending.
};

const grid_case grids[] = {
    {"sixteen even levels", {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7}},
    {"two levels", {-1, 1}},
    {"half steps", {0, 0.5F, 1, 1.5F, 2}},
    {"uneven levels", {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}},
    {"equal neighbours", {-6, -4, -3, -2, -1.5F, -1, -0.5F, 0, 0, 0.5F, 1, 1.5F, 2, 3, 4, 6}},
};

}  // namespace

TEST_CASE("rounding columns follows its definition on every cluster", "[kernels][feedback]") {
  constexpr std::size_t lanes = 64, columns = 37, groups = 3;
  for (const grid_case& grid : grids) {
    CAPTURE(grid.name);
    std::vector<float> middles, distances;
    for (std::size_t i = 0; i + 1 < grid.levels.size(); ++i) {
      middles.push_back((grid.levels[i] + grid.levels[i + 1]) / 2);
      distances.push_back(grid.levels[i + 1] - grid.levels[i]);
    }
    const auto differs = [&](float d) { return d != distances[0]; };
    const bool even = std::none_of(distances.begin(), distances.end(), differs);
    random_source random(11);
    const auto weights = random.numbers(columns * lanes), target = random.numbers(columns * lanes);
    const auto factors = random.numbers(columns * columns, 0.2F), before = random.numbers(columns * lanes, 0.1F);
    std::vector<std::int32_t> group;
    for (std::size_t j = 0; j < columns; ++j) group.push_back(static_cast<std::int32_t>(j * 7 % groups));
    std::vector<float> scale, inverse, minimum;
    const float widest = std::max(std::fabs(grid.levels.front()), std::fabs(grid.levels.back()));
    for (std::size_t i = 0; i < groups * lanes; ++i) {
      scale.push_back(i % 13 == 5 ? 0.0F : (i % 3 == 0 ? -1.0F : 1.0F) * (1 + std::fabs(random.number(0.3F))) / widest);
      inverse.push_back(scale.back() == 0 ? 0 : 1 / scale.back());
      minimum.push_back(random.number(0.2F));
    }
    for (const cluster isa : runnable_clusters()) {
      CAPTURE(name_of(isa));
      std::vector<float> errors = before, change(columns * lanes);
      std::vector<std::uint8_t> codes(columns * lanes);
      feedback_args args;
      args.lanes = lanes;
      args.columns = columns;
      args.weights = weights.data();
      args.target = target.data();
      args.factors = factors.data();
      args.factor_stride = columns;
      args.group = group.data();
      args.scale = scale.data();
      args.inverse = inverse.data();
      args.minimum = minimum.data();
      args.levels = {static_cast<std::int32_t>(grid.levels.size()), grid.levels[0], even ? distances[0] : 0,
                     middles.data(), distances.data()};
      args.errors = errors.data();
      args.change = change.data();
      args.codes = codes.data();
      select(isa).round_columns(args);
      for (std::size_t j = 0; j < columns; ++j)
        for (std::size_t lane = 0; lane < lanes; ++lane) {
          const std::size_t at = j * lanes + lane, g = static_cast<std::size_t>(group[j]) * lanes + lane;
          // With the changes that were really made: each column is checked by itself.
          double t = static_cast<double>(target[at]);
          for (std::size_t i = 0; i < j; ++i)
            t += static_cast<double>(factors[j * columns + i]) * static_cast<double>(change[i * lanes + lane]);
          const double x = (t + static_cast<double>(minimum[g])) * static_cast<double>(inverse[g]);
          double nearest = 1e30;
          for (const float level : grid.levels) nearest = std::min(nearest, std::fabs(x - static_cast<double>(level)));
          REQUIRE(codes[at] < grid.levels.size());
          const float level = grid.levels[codes[at]];
          CHECK(std::fabs(x - static_cast<double>(level)) <= nearest + 1e-4 * (1 + std::fabs(x)));
          const float value = scale[g] * level - minimum[g];
          CHECK(std::fabs(errors[at] - (weights[at] - value)) < 1e-6F);
          CHECK(change[at] == errors[at] - before[at]);
        }
    }
  }
}
