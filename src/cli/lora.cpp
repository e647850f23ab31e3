// flywheel lora: adapter files, and what is done with them.
#include <CLI/CLI.hpp>
#include <memory>
#include <utility>

#include "cli/command.hpp"
#include "cli/lora/lora.hpp"

namespace flywheel::cli {
namespace {

using shared_args = std::shared_ptr<lora_args>;

void declare_base(CLI::App& app, lora_args& args) {
  app.add_option("BASE", args.base, "The base model: a GGUF file or a Hugging Face folder")->required();
}
void declare_common(CLI::App& app, lora_args& args) {
  app.add_option("-t,--threads", args.threads, "Threads to use; default: one per physical core")
      ->check(CLI::Range(1, 4096));
  app.add_flag("--json", args.json, "Print one JSON object");
}
void declare_adapters(CLI::App& app, lora_args& args) {
  app.add_option("--adapter", args.adapters, "A GGUF file or PEFT folder, and how much of it; may be repeated")
      ->type_name("FILE[:SCALE]")
      ->required();
}
void declare_out(CLI::App& app, lora_args& args, const char* what) {
  app.add_option("OUT", args.out, what)->required();
}
void declare_factor_type(CLI::App& app, lora_args& args, const char* otherwise) {
  args.type = otherwise;
  app.add_option("--type", args.type, "Type of the factors")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
  app.add_option("--seed", args.seed, "Of random numbers")->capture_default_str();
}
constexpr const char* adapter_out = "Adapter to write: GGUF where the name ends with .gguf, else a PEFT folder";

action declare_info(CLI::App& app, const shared_args& args) {
  declare_base(app, *args);
  app.add_option("ADAPTER", args->input, "A GGUF file or a PEFT folder")->required();
  declare_common(app, *args);
  app.footer("Examples:\n  flywheel lora info base.gguf legal-lora\n  flywheel lora info base.gguf a.gguf --json");
  return [args] { return lora_info(*args); };
}
action declare_convert(CLI::App& app, const shared_args& args) {
  declare_base(app, *args);
  app.add_option("ADAPTER", args->input, "A GGUF file or a PEFT folder")->required();
  declare_out(app, *args, adapter_out);
  declare_common(app, *args);
  app.footer(
      "Examples:\n  flywheel lora convert base.gguf peft-folder adapter.gguf\n"
      "  flywheel lora convert base.gguf adapter.gguf peft-folder");
  return [args] { return lora_convert(*args); };
}
action declare_merge(CLI::App& app, const shared_args& args, bool unmerge) {
  declare_base(app, *args);
  declare_out(app, *args, "Model to write: GGUF, or safetensors if the name ends with .safetensors");
  declare_adapters(app, *args);
  app.add_option("--type", args->type, "Type of changed matrices; default: each its own");
  app.add_option("--method", args->method, "How quantized types are rounded: search or rtn")
      ->check(CLI::IsMember({"search", "rtn"}))
      ->capture_default_str();
  declare_common(app, *args);
  app.footer(unmerge ? "Examples:\n  flywheel lora unmerge merged.gguf base.gguf --adapter legal.gguf"
                     : "Examples:\n  flywheel lora merge base.gguf merged.gguf --adapter legal.gguf:0.5 --adapter "
                       "tutoring-folder");
  return [args, unmerge] { return lora_merge(*args, unmerge); };
}
action declare_extract(CLI::App& app, const shared_args& args) {
  declare_base(app, *args);
  app.add_option("TUNED", args->input, "The fine-tuned model")->required();
  declare_out(app, *args, adapter_out);
  args->rank = 16;
  app.add_option("--rank", args->rank, "Of every tensor, at most")->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--energy", args->energy, "Take the least rank with this share of the squared difference")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--tensors", args->pattern, "Only those with a match of this expression")->type_name("REGEX");
  app.add_flag("--embeddings", args->embeddings, "Also embeddings and output head");
  declare_factor_type(app, *args, "f16");
  declare_common(app, *args);
  app.footer("Examples:\n  flywheel lora extract base.gguf tuned.gguf legal.gguf --rank 32");
  return [args] { return lora_extract(*args); };
}
action declare_combine(CLI::App& app, const shared_args& args) {
  declare_base(app, *args);
  declare_out(app, *args, adapter_out);
  declare_adapters(app, *args);
  app.add_option("--how", args->how, "concatenate (exact), linear, svd, ties, dare_linear, dare_ties")
      ->check(CLI::IsMember({"concatenate", "linear", "svd", "ties", "dare_linear", "dare_ties"}))
      ->capture_default_str();
  app.add_option("--rank", args->rank, "Of svd, ties and dare; default: the largest of the adapters'")
      ->check(CLI::Range(1, 65536));
  app.add_option("--density", args->density, "Share of a change that ties and dare keep")->capture_default_str();
  app.add_option("--name", args->name, "Name of the adapter; default: the file's");
  declare_factor_type(app, *args, "f32");
  declare_common(app, *args);
  app.footer(
      "Examples:\n  flywheel lora combine base.gguf both.gguf --adapter legal.gguf --adapter tutoring.gguf:0.5\n"
      "  flywheel lora combine base.gguf small.gguf --adapter a.gguf --adapter b.gguf --how ties --rank 8");
  return [args] { return lora_combine(*args); };
}

}  // namespace

action lora_command(CLI::App& app) {
  app.require_subcommand(1);
  std::vector<std::pair<CLI::App*, action>> commands;
  const auto add = [&](const char* name, const char* what, auto&& declare, auto... more) {
    CLI::App* const sub = app.add_subcommand(name, what);
    commands.emplace_back(sub, declare(*sub, std::make_shared<lora_args>(), more...));
  };
  add("info", "What an adapter changes", declare_info);
  add("convert", "Write an adapter as GGUF or as a PEFT folder", declare_convert);
  add("merge", "Put adapters into a model's weights", declare_merge, false);
  add("unmerge", "Take adapters out of a model's weights", declare_merge, true);
  add("extract", "Make an adapter of a fine-tuned model", declare_extract);
  add("combine", "Make one adapter of several", declare_combine);
  app.footer(
      "Examples:\n  flywheel lora info base.gguf legal-lora --json\n"
      "  flywheel lora merge base.gguf legal.gguf --adapter legal-lora\n"
      "Each says more: flywheel lora merge --help");
  return [commands] {
    for (const auto& [sub, run] : commands)
      if (sub->parsed()) return run();
    return wrong_usage;
  };
}

}  // namespace flywheel::cli
