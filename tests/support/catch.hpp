// Catch2 2 and 3 have different headers; tests include this one.
#pragma once
#if defined(FLYWHEEL_CATCH2_V3)
#  include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#  include <catch2/catch.hpp>
#endif
