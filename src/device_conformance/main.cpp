// flywheel-device-conformance: whether a device does what plugin.h asks for.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>

#include "cli/output.hpp"
#include "device_conformance/isolation.hpp"
#include "device_conformance/report.hpp"
#include "flywheel/version.hpp"

namespace flywheel::kit {
namespace {

// As of the flywheel command.
constexpr int success = 0, failure = 1, wrong_usage = 2;

int report_error(const std::string& text, int code) {
  std::fflush(stdout);
  std::fprintf(stderr, "flywheel-device-conformance: error: %s\n", cli::printable(text).c_str());
  return code;
}

std::string padded(std::string text, std::size_t width) {
  text.resize(std::max(width, text.size()), ' ');
  return text;
}

void print_verdict(const verdict& v) {
  const bool failed = v.result == outcome::failed;
  const std::string result = padded(failed ? "FAILED" : to_string(v.result), 8);
  cli::print_line(padded(v.what->id, 22) + padded(v.what->mandatory ? "mandatory" : "optional", 11) +
                  (failed ? cli::red(result) : result) + padded(cli::decimal(v.seconds, 2), 7) + v.what->what +
                  (v.message.empty() || failed ? "" : ": " + cli::printable(v.message)));
  if (failed) cli::print_line("    " + cli::red(cli::printable(v.message)));
  std::fflush(stdout);
}

int run(int argc, char** argv) {
  CLI::App app("Checks a device against flywheel/device/plugin.h, each group of checks in a process of its own.");
  app.name("flywheel-device-conformance");
  app.set_version_flag("--version", "flywheel-device-conformance " + std::string(version));
  settings s;
  bool as_json = false;
  std::string report;
  app.add_option("DEVICE", s.device,
                 "PLUGIN.so, PLUGIN.so:NAME, or a simulator (hexagon-sim, xdna-sim); then ?OPTIONS for the device")
      ->required();
  app.add_flag("--json", as_json, "One JSON object instead of lines");
  app.add_option("--report", report, "Markdown file to write, for publication");
  app.add_flag("--quick", s.quick, "Fewer shapes and repetitions");
  std::vector<check> checks = all_checks();
  std::vector<std::string> groups;
  for (const check& c : checks)
    if (groups.empty() || groups.back() != c.group) groups.emplace_back(c.group);
  app.add_option("--only", s.only, "Only these groups of checks, while you work: the device is not said to conform")
      ->check(CLI::IsMember(groups))
      ->delimiter(',');
  app.add_option("--seed", s.seed, "Of operands and orders")->capture_default_str();
  app.add_option("--timeout", s.timeout, "Seconds that a submission or call may take")
      ->capture_default_str()
      ->check(CLI::Range(0.05, 86400.0));
  app.footer(
      "Exit code: 0 when every mandatory check passed, 1 when one failed or the device cannot be opened, 2 for wrong "
      "usage.\n\nExamples:\n"
      "  flywheel-device-conformance ./my_device.so --quick\n"
      "  flywheel-device-conformance ./my_device.so --only fences,results\n"
      "  flywheel-device-conformance './my_device.so:big?clock=low' --report report.md\n"
      "  flywheel-device-conformance xdna-sim --json");
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    cli::print(app.help());
    cli::finish_stdout();
    return success;
  } catch (const CLI::CallForVersion& e) {
    cli::print_line(e.what());
    cli::finish_stdout();
    return success;
  } catch (const CLI::ParseError& e) {
    return report_error(std::string(e.what()) + "; see 'flywheel-device-conformance --help'", wrong_usage);
  }

  if (!s.only.empty())
    std::erase_if(checks, [&](const check& c) { return std::count(s.only.begin(), s.only.end(), c.group) == 0; });
  const run_result r = run_isolated(s, checks, [&](const verdict& v) {
    if (!as_json) print_verdict(v);
  });
  if (!r.cannot_open.empty()) return report_error(r.cannot_open, failure);
  const counts n = count(s, r);
  if (as_json) {
    cli::print_line(json_report(s, r));
  } else {
    cli::print_line("");
    cli::print_line(std::to_string(n.passed) + " passed, " + std::to_string(n.failed) + " failed, " +
                    std::to_string(n.skipped) + " not applicable: " +
                    (n.conforms ? "the device conforms"
                                : cli::red(n.whole ? "the device does not conform" : "not all groups were checked")));
  }
  if (!report.empty()) {
    cli::output_file file(report);
    const std::string text = markdown_report(s, r);
    file.write(std::as_bytes(std::span(text)));
    file.finish();
  }
  cli::finish_stdout();
  return n.refused ? failure : success;
}

}  // namespace
}  // namespace flywheel::kit

int main(int argc, char** argv) {
  using namespace flywheel::kit;
  try {
    return run(argc, argv);
  } catch (const flywheel::bad_result& e) {
    return report_error(e.why().to_string(), failure);
  } catch (const std::exception& e) {
    return report_error(e.what(), failure);
  }
}
