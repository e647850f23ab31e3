// How help pages look.
#pragma once

#include <memory>

namespace CLI {
class FormatterBase;
}

namespace flywheel::cli {

/// "Usage: flywheel run [MODEL] [options]", options without the parser's notes on types and exclusions.
[[nodiscard]] std::shared_ptr<CLI::FormatterBase> help_formatter();

}  // namespace flywheel::cli
