#undef NDEBUG
#define _GLIBCXX_ASSERTIONS 1
#include "flywheel/flywheel.hpp"
#include "units.hpp"

unit_facts unit_two() { return facts_here(); }
