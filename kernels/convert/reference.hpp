// Specification of the conversions: the codecs of the formats module.
#pragma once

#include "flywheel/formats/formats.hpp"
#include "flywheel/formats/half.hpp"

namespace flywheel::inline v0::kernels::reference {

inline std::uint16_t f32_to_f16(float x) { return formats::f32_to_f16(x); }
inline formats::decode_fn to_f32(dtype type) { return formats::find_decoder(type); }

}  // namespace flywheel::inline v0::kernels::reference
