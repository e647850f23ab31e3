// Metadata of models that compute the same as their original, with weights in another basis. See quant/transform.hpp.
#pragma once

namespace flywheel::inline v0::detail {

inline constexpr const char* rotated_key = "flywheel.quantize.rotated";  ///< The residual stream, hence hidden states.
inline constexpr const char* rotated_heads_key = "flywheel.quantize.rotated_heads";  ///< Values of attention.
inline constexpr const char* scaled_key = "flywheel.quantize.scaled";                ///< Channels between layers.
inline constexpr const char* basis_keys[] = {rotated_key, rotated_heads_key, scaled_key};

}  // namespace flywheel::inline v0::detail
