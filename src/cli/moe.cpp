// flywheel moe: a mixture of experts from dense models.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/descent.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "flywheel/adapt/experts.hpp"
#include "flywheel/model/convert.hpp"

namespace flywheel::cli {
namespace {

struct moe_args {
  std::string recipe, out;
  adapt::experts_options mixing;
  model_args loading;
  bool json = false;
};

int mix(moe_args& args) {
  const interrupt stop;
  const std::string yaml = read_file(args.recipe);
  const adapt::experts_recipe what = adapt::experts_recipe::parse(yaml, args.recipe).value();
  const std::filesystem::path folder = std::filesystem::path(args.recipe).parent_path();
  std::vector<parent_model> parents = {{what.base, "base"}};
  for (const auto& e : what.experts) parents.push_back({e.model, "expert"});
  std::vector<std::string> inputs = files_of(parents, folder);
  inputs.push_back(args.recipe);
  refuse_overwrite(args.out, "OUT", inputs);
  args.mixing.context = args.loading.make_context();
  io::archive made;
  {
    progress_bar bar("routers");
    args.mixing.control = {bar.callback(), stop.token()};
    made = adapt::mix_experts(what, folder, args.mixing).value();
  }
  adapt::lineage from;
  from.method = "moe";
  from.parameters = json{{"recipe", what.text}, {"sharpness", args.mixing.sharpness}}.dump(
      -1, ' ', false, json::error_handler_t::replace);
  from.seed = args.mixing.seed;
  describe_descent(from, args.out, parents, folder, stop);
  made = adapt::with_lineage(made, from).value();
  progress_bar bar("writing");
  const converted_model written =
      convert(made, args.out, {what.type, args.mixing.context, {bar.callback(), stop.token()}}).value();
  bar.clear();
  adapt::write_lineage(from, args.out).value();
  if (args.json)
    print_line(dump({{"file", args.out},
                     {"experts", what.experts.size()},
                     {"experts_per_token", what.experts_per_token},
                     {"tensors", written.tensors},
                     {"tensor_bytes", written.bytes}}));
  else
    print_line(printable(args.out) + ": " + std::to_string(what.experts.size()) + " experts, " +
               std::to_string(what.experts_per_token) + " of them for each token, " +
               grouped(static_cast<std::int64_t>(written.tensors)) + " tensors, " + human_bytes(written.bytes));
  return success;
}

}  // namespace

action moe_command(CLI::App& app) {
  auto args = std::make_shared<moe_args>();
  app.add_option("RECIPE", args->recipe, "What to make it of, as YAML")->required();
  app.add_option("OUT", args->out, "GGUF file to write")->required();
  app.add_option("--sharpness", args->mixing.sharpness,
                 "By how many nats a router prefers the right expert to the next, on average over the prompts' means")
      ->capture_default_str();
  app.add_option("--seed", args->mixing.seed, "Of random routers")->capture_default_str();
  app.add_option("--ctx", args->mixing.ctx, "Tokens of a prompt that are run at once")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  args->loading.declare_options(app);
  app.add_flag("--json", args->json, "Print one JSON object");
  app.footer(
      "The recipe is mergekit-moe's: base_model (attention, norms and embeddings are its), gate_mode (hidden,\n"
      "cheap_embed or random), experts_per_token, and experts, each with source_model, positive_prompts and\n"
      "negative_prompts.\n"
      "\nExamples:\n"
      "  flywheel moe mixture.yaml mixture.gguf\n"
      "  flywheel moe mixture.yaml mixture.gguf --sharpness 8");
  return [args] { return mix(*args); };
}

}  // namespace flywheel::cli
