// flywheel convert: a Hugging Face folder (or another model file) as one file.
#include "flywheel/model/convert.hpp"

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "flywheel/model/open.hpp"

namespace flywheel::cli {
namespace {

struct convert_args {
  std::string model, out, type, like;
  unsigned threads = 0;
  bool json = false;
};

int convert_model(const convert_args& args) {
  convert_options options;
  if (!args.type.empty()) {
    const dtype_info* type = find_dtype(args.type);
    if (type == nullptr) throw usage_error("--type", "'" + args.type + "' is not a tensor type");
    options.type = type->type;
  }
  const interrupt stop;
  const io::archive from = open_model_archive(args.model).value();
  progress_bar bar("converting " + args.model);
  context_options shared;
  shared.threads = args.threads;
  options.context = context::create(std::move(shared)).value();
  options.control = {bar.callback(), stop.token()};
  auto done = args.like.empty()
                  ? convert(from, args.out, options)
                  : convert_to_folder(from, args.like, args.out,
                                      {.type = options.type, .context = options.context, .control = options.control});
  if (!done && done.error().code == errc::invalid_argument && done.error().where == "type")
    throw usage_error("--type", done.error().message);
  const converted_model& made = done.value();
  bar.clear();
  const auto architecture = from.metadata().string("general.architecture");
  if (args.json)
    print_line(dump({{"file", args.out},
                     {"architecture", *architecture},
                     {"tensors", made.tensors},
                     {"changed", made.changed},
                     {"tensor_bytes", made.bytes},
                     {"file_bytes", open_model_archive(args.out).value().file_bytes()}}));
  else
    print_line(printable(args.out) + ": " + printable(*architecture) + ", " +
               grouped(static_cast<std::int64_t>(made.tensors)) + " tensors, " + human_bytes(made.bytes) +
               (made.changed > 0 ? ", " + grouped(static_cast<std::int64_t>(made.changed)) + " in another type" : ""));
  return success;
}

}  // namespace

action convert_command(CLI::App& app) {
  auto args = std::make_shared<convert_args>();
  app.add_option("MODEL", args->model, "A Hugging Face folder (config.json, *.safetensors, tokenizer) or a GGUF file")
      ->required();
  app.add_option("OUT", args->out,
                 "File to write: GGUF, or safetensors if the name ends with .safetensors; with --like a folder")
      ->required();
  app.add_option(
      "--type", args->type,
      "Type of matrices: f32, f16, bf16, q8_0, q4_0, ..., or for NPUs q8_channel, q4_channel, q8_g128, q4_g128; "
      "default: as they are. Vectors, norms and routers stay f32");
  app.add_option("--like", args->like,
                 "Make OUT a Hugging Face folder, with the configuration and the tokenizer of this one");
  app.add_option("-t,--threads", args->threads, "Threads to use; default: one per physical core")
      ->check(CLI::Range(1, 4096));
  app.add_flag("--json", args->json, "Describe what was written on stdout");
  app.footer(
      "Examples:\n"
      "  flywheel convert SmolLM2-135M-Instruct smollm2.gguf\n"
      "  flywheel convert SmolLM2-135M-Instruct smollm2-q8_0.gguf --type q8_0\n"
      "  flywheel convert merged.gguf merged --like SmolLM2-135M-Instruct");
  return [args] { return convert_model(*args); };
}

}  // namespace flywheel::cli
