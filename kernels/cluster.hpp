// The ISA clusters of cmake/isa.cmake as an enumeration, and whether this build has them. Private to the library.
#pragma once

#include <cstdint>
#include <string_view>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::kernels {

enum class cluster : std::uint8_t {
#define FLYWHEEL_ISA(name, built, test) name,
#include "isa_table.inc"
#undef FLYWHEEL_ISA
};

inline constexpr std::string_view cluster_names[] = {
#define FLYWHEEL_ISA(name, built, test) #name,
#include "isa_table.inc"
#undef FLYWHEEL_ISA
};

}  // namespace flywheel::inline v0::kernels
