#include "src/quant/codebooks.hpp"

namespace flywheel::inline v0::quant {

std::span<const codebook_format> codebook_formats() noexcept { return {}; }

}  // namespace flywheel::inline v0::quant
