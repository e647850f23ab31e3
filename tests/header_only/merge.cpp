// A program that merges tensors without the library. Exit code 1 and a line where the result is not what it must be.
#include <cmath>
#include <cstdio>
#include <vector>

#include "flywheel/adapt/merge/methods.hpp"

namespace merge = flywheel::adapt::merge;

namespace {

bool check(const merge::method& how, std::vector<double> parameters, std::vector<float> expected) {
  const std::vector<float> base = {1, 2, 3, 4}, a = {2, 2, 3, 0}, b = {3, 2, 1, 5};
  const float* const models[] = {a.data(), b.data()};
  merge::task what;
  what.elements = what.cols = 4;
  what.models = 2;
  what.base = true;
  what.parameters = parameters;
  std::vector<float> out(4);
  merge::merge_tensor(how, what, models, base.data(), out);
  bool good = true;
  for (std::size_t i = 0; i < 4; ++i) good = good && std::abs(out[i] - expected[i]) < 1e-5F;
  if (!good) std::printf("%s: %g %g %g %g\n", how.name.data(), out[0], out[1], out[2], out[3]);
  return good;
}

}  // namespace

int main() {
  bool good = check(merge::linear, {1, 3, 1}, {2.75F, 2, 1.5F, 3.75F});
  good &= check(merge::task_arithmetic, {1, 1, 1, 1, 0, 0.5, 0, 0}, {2.5F, 2, 2, 2.5F});
  good &= check(merge::ties, {1, 1, 0.5, 0.5, 1, 1, 0, 1, 0}, {2.5F, 2, 1, 0});
  return good ? 0 : 1;
}
