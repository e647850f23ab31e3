// Links and runs: prints the version and the instruction set, and sees that a missing file is an error.
#include <iostream>

#include "flywheel/flywheel.hpp"

int main() {
  const auto isa = flywheel::detect_isa();
  if (!isa) return 1;
  std::cout << "flywheel " << flywheel::version << ", " << isa->selected << '\n';
  const auto model = flywheel::model::open("no-such-model.gguf");
  return !model && model.error().code == flywheel::errc::not_found ? 0 : 1;
}
