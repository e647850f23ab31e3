// Version numbers of these headers; kept equal to CMakeLists.txt's by the build.
#pragma once

#include <string_view>

#define FLYWHEEL_VERSION_MAJOR 0
#define FLYWHEEL_VERSION_MINOR 1
#define FLYWHEEL_VERSION_PATCH 0

namespace flywheel::inline v0 {
inline constexpr std::string_view version = "0.1.0";
}
