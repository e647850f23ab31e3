// Any bytes as an importance matrix, of both forms. What is read is consistent.
#include <cmath>
#include <cstdint>
#include <span>

#include "flywheel/quant/importance.hpp"
#include "fuzz/walk_archive.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace flywheel;
  const auto matrix = quant::importance_matrix::read(std::as_bytes(std::span(data, size)));
  if (!matrix) {
    test::require(!matrix.error().message.empty(), "an error without words");
    return 0;
  }
  test::require(!matrix->entries.empty(), "a matrix without entries");
  for (const auto& [name, e] : matrix->entries) {
    test::require(e.cols > 0 && !e.counts.empty(), "an entry without columns or counts");
    test::require(e.sums.size() == e.counts.size() * static_cast<std::size_t>(e.cols), "sums that do not fit");
    for (const float v : matrix->of(name)) test::require(v >= 0, "a mean square below zero");
  }
  return 0;
}
