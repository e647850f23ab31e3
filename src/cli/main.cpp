// The `flywheel` command: declares the subcommands, runs the chosen one, reports what went wrong on one line.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/help.hpp"
#include "cli/output.hpp"
#include "flywheel/detail/edit_distance.hpp"
#include "flywheel/version.hpp"

namespace flywheel::cli {
namespace {

struct entry {
  const char* name;
  const char* summary;
  action (*declare)(CLI::App&);
};
constexpr entry commands[] = {
#define FLYWHEEL_COMMAND(name, summary) {#name, summary, name##_command},
#include "cli/commands.inc"
#undef FLYWHEEL_COMMAND
};

int report(const std::string& text, int code) noexcept {
  try {
    std::fflush(stdout);
    std::fprintf(stderr, "flywheel: error: %s\n", printable(text).c_str());
  } catch (...) {
    std::fputs("flywheel: error: out of memory\n", stderr);
  }
  return code;
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& known) {
  const std::string* best = nullptr;
  std::size_t best_distance = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (const std::string& name : known)
    if (const std::size_t d = detail::edit_distance(word, name); d < best_distance) best = &name, best_distance = d;
  return best ? "; did you mean '" + *best + "'?" : std::string();
}

int unknown_argument(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  const std::vector<std::string> rest = command.remaining();
  const std::string word = rest.empty() ? std::string("?") : rest.front().substr(0, rest.front().find('='));
  std::string what = "unknown option";
  if (!word.starts_with('-')) {
    names.clear();
    for (const CLI::App* sub : command.get_subcommands([](const CLI::App*) { return true; }))
      names.push_back(sub->get_name());
    what = names.empty() ? "one argument too many" : "unknown command";
  }
  const std::string guess = did_you_mean(word, names);
  return report(word + ": " + what + (guess.empty() ? see_help(command) : guess), wrong_usage);
}

/// The command that the words named: the last of app, its subcommand, that one's subcommand.
const CLI::App& named(const CLI::App& app) {
  const auto chosen = app.get_subcommands();
  return chosen.empty() ? app : named(*chosen.front());
}

int run(int argc, char** argv) {
  CLI::App app("flywheel runs, measures and inspects AI models on this machine.");
  app.name("flywheel");
  app.set_version_flag("--version", "flywheel " + std::string(version));
  app.footer("Try:\n  flywheel run -p \"Once upon a time\"\n  flywheel COMMAND --help");
  app.require_subcommand(0, 1);
  app.formatter(help_formatter());  // before the commands, which take it over
  std::map<const CLI::App*, action> actions;
  std::vector<std::string> names;
  for (const entry& e : commands) {
    CLI::App* command = app.add_subcommand(e.name, e.summary);
    actions.emplace(command, e.declare(*command));
    names.emplace_back(e.name);
  }

  if (argc <= 1) {
    std::fputs(app.help().c_str(), stderr);
    return wrong_usage;
  }
  if (const std::string first = argv[1];
      !first.starts_with('-') && std::find(names.begin(), names.end(), first) == names.end()) {
    const std::string guess = did_you_mean(first, names);
    return report(first + ": unknown command" + (guess.empty() ? "; see 'flywheel --help'" : guess), wrong_usage);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    print(named(app).help());
    finish_stdout();
    return success;
  } catch (const CLI::CallForVersion& e) {
    print_line(e.what());
    finish_stdout();
    return success;
  } catch (const CLI::ExtrasError&) {
    return unknown_argument(named(app));
  } catch (const CLI::ParseError& e) {
    const CLI::App& command = named(app);
    const std::string where = &command == &app ? std::string() : command.get_name() + ": ";
    return report(where + e.what() + see_help(command), wrong_usage);
  }
  const auto chosen = app.get_subcommands();
  if (chosen.empty()) return report("COMMAND: is missing; see 'flywheel --help'", wrong_usage);
  const int code = actions.at(chosen.front())();
  finish_stdout();
  return code;
}

}  // namespace
}  // namespace flywheel::cli

int main(int argc, char** argv) {
  using namespace flywheel::cli;
  try {
    return run(argc, argv);
  } catch (const usage_error& e) {
    return report(e.where.empty() ? e.what() : e.where + ": " + e.what(), wrong_usage);
  } catch (const flywheel::bad_result& e) {
    if (e.why().code == flywheel::errc::cancelled) return interrupted;
    std::string text = e.why().to_string();
    // Programs tell by this word what a build cannot do from what is broken.
    if (e.why().code == flywheel::errc::unsupported && text.find("upported") == std::string::npos)
      text += " (unsupported)";
    return report(text, failure);
  } catch (const std::bad_alloc&) {
    return report("out of memory: close other programs, or use a smaller model or --ctx", failure);
  } catch (const std::exception& e) {
    return report(e.what(), failure);
  }
}
