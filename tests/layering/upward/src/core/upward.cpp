#include "flywheel/io/archive.hpp"  // what core must not do
