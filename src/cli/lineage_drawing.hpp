// A family tree as a drawing.
#pragma once

#include <span>
#include <string>

#include "flywheel/adapt/lineage.hpp"

namespace flywheel::cli {

/// SVG: the model on the left, its parents to the right, generation by generation. `states` [nodes, as verify_lineage
/// has them] are shown where given.
[[nodiscard]] std::string lineage_svg(const adapt::lineage& of, std::span<const adapt::digest_state> states);

}  // namespace flywheel::cli
