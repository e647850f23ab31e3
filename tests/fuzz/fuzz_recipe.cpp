// Any bytes as a recipe. What is read has what its type promises, and reads the same again.
#include <cmath>
#include <cstdint>
#include <string_view>

#include "flywheel/adapt/recipe.hpp"
#include "fuzz/walk_archive.hpp"

namespace {

void check_settings(const flywheel::adapt::settings& of) {
  for (const auto& [name, value] : of) {
    flywheel::test::require(!value.choices.empty(), "a setting without values");
    for (const auto& choice : value.choices) {
      flywheel::test::require(choice.values.empty() != choice.word.empty(), "a choice without values");
      for (const double v : choice.values) flywheel::test::require(std::isfinite(v), "a value that is no number");
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace flywheel;
  const auto read = adapt::recipe::parse({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!read) {
    test::require(!read.error().message.empty(), "an error without words");
    return 0;
  }
  check_settings(read->parameters);
  test::require(!read->modules.empty(), "a recipe without modules");
  for (const adapt::recipe::module& module : read->modules) {
    check_settings(module.parameters);
    test::require(!module.slices.empty(), "a module without slices");
    for (const adapt::recipe::slice& slice : module.slices) {
      check_settings(slice.parameters);
      test::require(!slice.sources.empty(), "a slice without sources");
      for (const adapt::recipe::source& source : slice.sources) {
        check_settings(source.parameters);
        test::require(!source.model.path.empty(), "a model without a path");
        test::require(source.first >= 0 && source.first <= source.last, "a range that runs backwards");
      }
    }
  }
  test::require(!read->models().empty(), "a recipe without models");
  test::require(adapt::recipe::parse(read->text).value().models() == read->models(), "it reads differently again");
  return 0;
}
