// The table of merge methods.
#include "flywheel/adapt/merge/methods.hpp"

#include "flywheel/adapt/merge_models.hpp"

namespace flywheel::inline v0::adapt {
namespace {

constexpr const merge::method* all_methods[] = {
#define FLYWHEEL_MERGE_METHOD(name) &merge::name,
#include "src/adapt/merge/methods.inc"
#undef FLYWHEEL_MERGE_METHOD
};

}  // namespace

const merge::method* find_merge_method(std::string_view name) noexcept {
  for (const merge::method* one : all_methods)
    if (one->name == name) return one;
  return nullptr;
}

std::vector<const merge::method*> merge_methods() { return {std::begin(all_methods), std::end(all_methods)}; }

}  // namespace flywheel::inline v0::adapt
