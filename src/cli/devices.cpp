// flywheel devices: who can compute, and who would compute what of a model.
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.hpp"
#include "cli/devices/devices.hpp"
#include "cli/output.hpp"

namespace flywheel::cli {
namespace {

void declare_isa(CLI::App& app, model_args& args) {
  args.threads = 1;  // nothing is computed
  args.devices.no_blob_cache = true;
  app.add_option("--isa", args.isa,
                 "Instruction set of the CPU, one of those that 'flywheel info' lists; default: the best");
}

action declare_plan(CLI::App& app) {
  auto args = std::make_shared<device_plan_args>();
  app.add_option("MODEL", args->model.path, "Model: a GGUF file or a Hugging Face folder; its weights are not read")
      ->required();
  args->model.devices.declare_devices(app);
  declare_isa(app, args->model);
  app.add_option("--ctx", args->positions, "Positions that a token sees, for the work of attention")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  app.add_flag("--all", args->all, "A line for every operation, instead of one for equal ones of all layers");
  app.add_flag("--json", args->json, "Print one JSON object");
  app.footer(
      "Every operation goes to the first device that takes it. Figures are for one decoded token: multiply-adds with\n"
      "weights, bytes of weights in the file, the time a device predicts, and what crosses between devices.\n"
      "\nExamples:\n"
      "  flywheel devices plan model.gguf -d hexagon-sim\n"
      "  flywheel devices plan model.gguf -d ./libvendor_npu.so,hexagon-sim --all\n"
      "  flywheel devices plan model.gguf -d 'xdna-sim?scratch=65536' --json");
  return [args] { return plan_devices(*args); };
}

}  // namespace

action devices_command(CLI::App& app) {
  app.require_subcommand(0, 1);
  auto args = std::make_shared<device_list_args>();
  app.add_option("--plugin", args->plugins, "Also the devices of this plug-in, a shared library; may be repeated")
      ->type_name("FILE");
  declare_isa(app, args->common);
  app.add_flag("--json", args->json, "Print one JSON object");
  CLI::App* plan = app.add_subcommand("plan", "What of a model each device would compute, and why not more");
  const action run_plan = declare_plan(*plan);
  app.footer(
      "Without a command it lists the devices that -d takes.\n"
      "\nExamples:\n"
      "  flywheel devices\n"
      "  flywheel devices --plugin ./libvendor_npu.so --json\n"
      "  flywheel devices plan model.gguf -d hexagon-sim");
  return [args, plan, run_plan] { return plan->parsed() ? run_plan() : list_devices(*args); };
}

}  // namespace flywheel::cli
