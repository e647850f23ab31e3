// flywheel info: this version, the processor, the kernels in use.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <thread>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/default_model.hpp"
#include "cli/output.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/isa.hpp"
#include "flywheel/version.hpp"
#include "src/measure/machine.hpp"

namespace flywheel::cli {
namespace {

struct info_args {
  model_args common;  // only the context's options are used
  bool json = false;
};

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

int show(const info_args& args) {
  const context ctx = args.common.make_context();
  const isa_report& isa = ctx.isa();
  const unsigned threads = ctx.executor().concurrency();
  const unsigned logical = std::thread::hardware_concurrency();
  const std::string pages = measure::huge_page_setting();
  const std::uint64_t memory = measure::find_memory().total;
  const std::span<const std::byte> built_in = default_model();
  const std::string model = built_in.empty() ? std::string() : default_model_name();
  if (args.json) {
    json clusters = json::array();
    for (const isa_status& c : isa.clusters)
      clusters.push_back(
          {{"name", c.name}, {"built", c.built}, {"detected", c.detected}, {"selected", c.name == isa.selected}});
    print_line(dump({{"version", version},
                     {"compiler", compiler()},
                     {"cpu", isa.cpu},
                     {"architecture", isa.architecture},
                     {"isa", isa.selected},
                     {"isa_overridden", isa.overridden},
                     {"clusters", clusters},
                     {"threads", threads},
                     {"logical_processors", logical},
                     {"memory_bytes", memory},
                     {"huge_pages", pages},
                     {"default_model", model}}));
    return success;
  }
  table rows({{"flywheel"}, {std::string(version)}});
  rows.row({"compiler", compiler()});
  rows.row({"processor", isa.cpu + " (" + isa.architecture + ")"});
  rows.row(
      {"instruction set", std::string(isa.selected) + (isa.overridden ? " (chosen by hand)" : " (best available)")});
  rows.row({"threads", std::to_string(threads) + " of " + std::to_string(logical) + " logical processors"});
  if (memory > 0) rows.row({"memory", human_bytes(memory)});
  rows.row({"huge pages", pages});
  rows.row({"default model",
            model.empty() ? "none" : model + ", " + human_bytes(built_in.size()) + ", part of this command"});
  print(rows.text());
  table clusters({{"instruction sets"}, {"built"}, {"detected"}, {""}});
  for (const isa_status& c : isa.clusters)
    clusters.row({std::string(c.name), c.built ? "yes" : "no", c.detected ? "yes" : "no",
                  c.name == isa.selected ? "selected" : ""});
  print("\n" + clusters.text());
  return success;
}

}  // namespace

action info_command(CLI::App& app) {
  auto args = std::make_shared<info_args>();
  app.add_option("-t,--threads", args->common.threads, "Threads to use; default: one per physical core")
      ->check(CLI::Range(1, 4096));
  app.add_option("--isa", args->common.isa, "Instruction set to use; default: the best");
  app.add_flag("--json", args->json, "Print one JSON object");
  app.footer(
      "The environment variable FLYWHEEL_ISA chooses an instruction set for every command.\n"
      "\nExamples:\n"
      "  flywheel info\n"
      "  FLYWHEEL_ISA=generic flywheel info --json");
  return [args] { return show(*args); };
}

}  // namespace flywheel::cli
