// flywheel bench: what this machine can do, and how much of it a model gets.
#include <CLI/CLI.hpp>
#include <limits>
#include <memory>

#include "cli/bench/hardware.hpp"
#include "cli/bench/model.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"

namespace flywheel::cli {
namespace {

action declare_hardware(CLI::App& app) {
  auto args = std::make_shared<hardware_bench_args>();
  app.add_option("-t,--threads", args->threads, "The most threads to use; default: one per physical core")
      ->check(CLI::Range(1, 4096));
  app.add_option("--isa", args->isa,
                 "Instruction set to use, one of those that 'flywheel info' lists; default: the best");
  app.add_flag("--quick", args->quick, "Fewer formats, one shape, shorter; no whole model");
  app.add_option("--only", args->only, "Weights of these types alone: q4_0,q8_0,...")->delimiter(',');
  app.add_option("--shape", args->shapes, "Shapes of the weights, outputs x inputs: 5632x2048,4096x4096")
      ->delimiter(',');
  app.add_option("--rotate", args->rotate_mib,
                 "MiB of weights to rotate over; default: more than 4 times the last cache")
      ->check(CLI::Range(1, 1 << 24));
  app.add_flag("--full", args->full, "A line for every product");
  app.add_option("--plot", args->plot,
                 "Draw a roofline with a point for every product of the first shape: an SVG file");
  app.add_flag("--json", args->json, "Print one JSON object");
  app.footer(
      "Examples:\n"
      "  flywheel bench hardware\n"
      "  flywheel bench hardware --quick --only q4_0,q8_0 --plot roofline.svg\n"
      "  flywheel bench hardware --json > machine.json");
  return [args] { return bench_hardware(*args); };
}

action declare_model(CLI::App& app) {
  auto args = std::make_shared<model_bench_args>();
  args->model.declare(app);
  app.get_option("MODEL")->description(
      "Model file (GGUF), or a shape that 'flywheel synth' knows, such as tinyllama-1.1b: then weights are random");
  const CLI::Option* type = app.add_option("--type", args->type, "Type of a shape's weights")->capture_default_str();
  const auto tokens = [&](const char* name, std::int32_t& value, const char* help, int least) {
    app.add_option(name, value, help)->check(CLI::Range(least, 1 << 22))->capture_default_str();
  };
  tokens("-p,--prompt-tokens", args->work.prompt, "Tokens of the prefill", 1);
  tokens("-n,--max-tokens", args->work.generate, "Tokens to decode", 1);
  app.add_option("--sessions", args->work.sessions,
                 "Sequences to decode together, in one batch; their tokens per second are compared with one alone")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  tokens("--depth", args->work.depth, "Tokens that are in the context before the prefill, and before decoding", 0);
  app.add_option("-r,--repetitions", args->work.repetitions, "How often")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  args->session.declare(app, false);
  args->adapters.declare(app);
  app.get_option("--adapter")
      ->description(
          "Adapter to measure with and without: PATH or PATH:SCALE; may be repeated, then the sessions of "
          "--sessions take them in turn");
  app.add_option("--adapter-rank", args->adapter_rank,
                 "Measure with random adapters of this rank for every matrix of the layers, one for each session")
      ->check(CLI::Range(1, 1024))
      ->excludes("--adapter");
  app.add_option("--rotate", args->rotate_mib,
                 "MiB to measure the reading of memory with; default: more than 4 times the last cache")
      ->check(CLI::Range(1, 1 << 24));
  app.add_flag("--json", args->json, "Print one JSON object");
  app.footer(
      "Examples:\n"
      "  flywheel bench model model.gguf -t 2\n"
      "  flywheel bench model tinyllama-1.1b --type q8_0 -p 512 -n 128 --json\n"
      "  flywheel bench model tinyllama-1.1b --depth 4096 -r 5\n"
      "  flywheel bench model tinyllama-1.1b -t 2 --sessions 8\n"
      "  flywheel bench model tinyllama-1.1b -t 2 --sessions 8 --adapter-rank 8");
  return [args, type] {
    args->type_given = type->count() > 0;
    return bench_model(*args);
  };
}

}  // namespace

action bench_command(CLI::App& app) {
  app.require_subcommand(0, 1);
  CLI::App* hardware = app.add_subcommand("hardware", "What the processor, the memory and the kernels can do");
  const action run_hardware = declare_hardware(*hardware);
  CLI::App* model = app.add_subcommand("model", "Prefill and decode speed of a model, and percent of the machine's");
  const action run_model = declare_model(*model);
  app.footer(
      "Examples:\n"
      "  flywheel bench hardware --quick\n"
      "  flywheel bench model tinyllama-1.1b --type q4_0 --json");
  return [hardware, model, run_hardware, run_model] {
    if (!hardware->parsed() && !model->parsed())
      throw usage_error("bench", "what? Name hardware or model; see 'flywheel bench --help'");
    return hardware->parsed() ? run_hardware() : run_model();
  };
}

}  // namespace flywheel::cli
