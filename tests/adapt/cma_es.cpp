// CMA-ES: functions whose minima are known, in numbers of evaluations that implementations of the tutorial need.
#include "flywheel/adapt/cma_es.hpp"

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "support/catch.hpp"

using namespace flywheel;
using namespace flywheel::adapt;

namespace {

using cma_function = std::function<double(std::span<const double>)>;

double cma_sphere(std::span<const double> x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return sum;
}
/// Condition number 1e6.
double cma_ellipsoid(std::span<const double> x) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i)
    sum += std::pow(1e6, static_cast<double>(i) / static_cast<double>(x.size() - 1)) * x[i] * x[i];
  return sum;
}
/// The same condition, with the one long axis along (1, 1, ...).
double cma_rotated(std::span<const double> x) {
  double along = 0;
  for (const double v : x) along += v;
  along *= along / static_cast<double>(x.size());
  return 1e6 * (cma_sphere(x) - along) + along;
}
double cma_rosenbrock(std::span<const double> x) {
  double sum = 0;
  for (std::size_t i = 0; i + 1 < x.size(); ++i)
    sum += 100 * std::pow(x[i + 1] - x[i] * x[i], 2) + std::pow(1 - x[i], 2);
  return sum;
}

void cma_step(cma_es& search, const cma_function& f) {
  const auto all = search.ask();
  std::vector<double> values;
  for (std::size_t k = 0; k < search.population(); ++k)
    values.push_back(f(all.subspan(k * search.size(), search.size())));
  REQUIRE(search.tell(values));
}

cma_es_options cma_from(std::size_t n, double start, double step) {
  cma_es_options o;
  o.start.assign(n, start);
  o.step = step;
  return o;
}

/// Evaluations until the value is below 1e-10; more than `most` fail.
std::uint64_t cma_evaluations(const cma_es_options& options, const cma_function& f, std::uint64_t most) {
  cma_es search = cma_es::create(options).value();
  while (search.state().best.empty() || search.state().best_value > 1e-10) {
    if (search.state().evaluations > most) {
      FAIL("no minimum after " << most << " evaluations: " << search.state().best_value);
    }
    cma_step(search, f);
  }
  return search.state().evaluations;
}

}  // namespace

TEST_CASE("CMA-ES finds minima in the numbers of evaluations that are known for it", "[cma_es]") {
  // Hansen's implementations in 10 dimensions: about 1800 on the sphere, 5500 on ellipsoids, 6500 on Rosenbrock's.
  CHECK(cma_evaluations(cma_from(10, 1, 0.5), cma_sphere, 3000) > 500);
  CHECK(cma_evaluations(cma_from(10, 1, 0.5), cma_ellipsoid, 8000) > 1500);
  CHECK(cma_evaluations(cma_from(10, 1, 0.5), cma_rotated, 8000) > 1500);
  CHECK(cma_evaluations(cma_from(8, 0, 0.5), cma_rosenbrock, 8000) > 1500);
  cma_evaluations(cma_from(1, 1, 0.5), cma_sphere, 400);
}

TEST_CASE("CMA-ES with a diagonal covariance scales, but learns no rotation", "[cma_es]") {
  cma_es_options o = cma_from(40, 1, 0.5);
  o.full_up_to = 0;
  const std::uint64_t diagonal = cma_evaluations(o, cma_ellipsoid, 30'000);
  cma_es search = cma_es::create(o).value();
  CHECK(search.state().covariance.size() == 40);
  while (search.state().evaluations < diagonal) cma_step(search, cma_rotated);
  CHECK(search.state().best_value > 1e-6);
}

TEST_CASE("CMA-ES stays within its box and finds minima at its faces", "[cma_es]") {
  cma_es_options o = cma_from(5, 0.5, 0.5);
  o.lower = {-1, 0.25, -1, -1, -3};
  o.upper = {1, 2, 1, 1, 5};
  cma_es search = cma_es::create(o).value();
  bool inside = true;
  const auto f = [&](std::span<const double> x) {
    for (std::size_t i = 0; i < x.size(); ++i) inside &= x[i] >= o.lower[i] && x[i] <= o.upper[i];
    return cma_sphere(x) + 3 * x[4];  // least at 0, 0.25, 0, 0, -1.5
  };
  for (int g = 0; g < 150; ++g) cma_step(search, f);
  CHECK(inside);
  CHECK(std::abs(search.state().best[1] - 0.25) < 1e-6);
  CHECK(std::abs(search.state().best[4] + 1.5) < 1e-4);
  CHECK(std::abs(search.mean()[0]) < 1e-4);
}

TEST_CASE("CMA-ES goes on where it stopped, bit for bit", "[cma_es]") {
  for (const std::size_t full : {0, 100}) {
    cma_es_options o = cma_from(7, 1, 0.3);
    o.full_up_to = full;
    o.seed = 42;
    cma_es whole = cma_es::create(o).value();
    for (int g = 0; g < 40; ++g) cma_step(whole, cma_rosenbrock);
    cma_es first = cma_es::create(o).value();
    for (int g = 0; g < 17; ++g) cma_step(first, cma_rosenbrock);
    (void)first.ask();  // a generation that was begun and is lost
    const cma_es_state saved = first.state();
    cma_es second = cma_es::create(o).value();
    REQUIRE(second.restore(saved));
    for (int g = 17; g < 40; ++g) cma_step(second, cma_rosenbrock);
    CHECK(second.state().best_value == whole.state().best_value);
    CHECK(second.state().mean == whole.state().mean);
    CHECK(second.state().covariance == whole.state().covariance);
    CHECK(second.state().random == whole.state().random);
    o.seed = 43;
    cma_es other = cma_es::create(o).value();
    for (int g = 0; g < 40; ++g) cma_step(other, cma_rosenbrock);
    CHECK(other.state().mean != whole.state().mean);
  }
}

TEST_CASE("CMA-ES ranks what is not a number last, and refuses what makes no search", "[cma_es]") {
  cma_es search = cma_es::create(cma_from(4, 1, 0.5)).value();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (int g = 0; g < 150; ++g)
    cma_step(search, [&](std::span<const double> x) { return x[0] > 0.9 && x[1] > 0.9 ? nan : cma_sphere(x); });
  CHECK(search.state().best_value < 1e-9);
  CHECK(search.tell({}).error().code == errc::invalid_argument);  // nothing was asked
  (void)search.ask();
  CHECK(search.tell(std::vector<double>(2)).error().code == errc::invalid_argument);
  cma_es_state state = search.state();
  state.mean.pop_back();
  CHECK(search.restore(state).error().code == errc::invalid_argument);
  CHECK(cma_es::create({}).error().code == errc::invalid_argument);
  CHECK(cma_es::create(cma_from(3, 1, 0)).error().code == errc::invalid_argument);
  cma_es_options o = cma_from(1, 2, 1);
  o.lower = {0};
  o.upper = {1};
  CHECK(cma_es::create(o).error().where == "start");
}
