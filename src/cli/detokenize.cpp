// flywheel detokenize: ids to text.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"

namespace flywheel::cli {
namespace {

struct detokenize_args {
  std::string path;
  std::string ids;
  bool skip_special = false;
  bool json = false;
};

}  // namespace

action detokenize_command(CLI::App& app) {
  auto args = std::make_shared<detokenize_args>();
  app.add_option("MODEL", args->path, "File with the vocabulary (GGUF)")->required();
  app.add_option("--ids", args->ids, "Token ids: 1,2,3 (or @FILE, @-: stdin)")->required();
  app.add_flag("--skip-special", args->skip_special, "Leave control tokens out");
  app.add_flag("--json", args->json, "Print {\"text\": \"...\"}");
  app.footer(
      "Examples:\n"
      "  flywheel detokenize model.gguf --ids 15043,3186\n"
      "  flywheel detokenize model.gguf --ids @ids.txt --json");
  return [args] {
    const std::vector<token_id> ids = parse_ids(args->ids, "--ids");
    const text::tokenizer vocabulary = open_tokenizer(args->path);
    const std::string text = vocabulary.decode(ids, {.render_special = !args->skip_special}).value();
    if (args->json) {
      print_line(dump({{"text", text}}));
    } else {
      print_line(is_terminal(stdout) ? printable_lines(text) : text);
    }
    return success;
  };
}

}  // namespace flywheel::cli
