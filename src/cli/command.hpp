// What a subcommand is: a function that declares its options and returns what to do when they have been read.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace flywheel::cli {

/// Exit codes: wrong usage is 2 (throw usage_error), a failure is 1 (throw bad_result, which result::value() does).
inline constexpr int success = 0;
inline constexpr int failure = 1;
inline constexpr int wrong_usage = 2;
inline constexpr int interrupted = 130;  ///< 128 + SIGINT, as shells have it.

/// Runs the command and returns its exit code.
using action = std::function<int()>;

#define FLYWHEEL_COMMAND(name, summary) action name##_command(CLI::App& app);
#include "cli/commands.inc"
#undef FLYWHEEL_COMMAND

}  // namespace flywheel::cli
