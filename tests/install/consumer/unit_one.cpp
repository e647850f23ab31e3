// Two translation units include everything and share types: a definition that is not inline, or that differs between
// them, fails to link.
#undef NDEBUG
#define NDEBUG 1  // one with assertions, one without: no macro may change a public type
#include "flywheel/flywheel.hpp"
#include "units.hpp"

unit_facts unit_one() { return facts_here(); }
flywheel::result<flywheel::shape> make_shape() { return flywheel::shape{8, 512}; }
