// flywheel embed: one vector per text.
#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"

namespace flywheel::cli {
namespace {

const std::map<std::string, pooling> poolings = {{"auto", pooling::automatic}, {"none", pooling::none},
                                                 {"mean", pooling::mean},      {"cls", pooling::cls},
                                                 {"last", pooling::last},      {"rank", pooling::rank}};

struct embed_command_args {
  model_args model;
  text_args texts;
  embed_args how;
  std::optional<std::string> ids;
  bool no_normalize = false;
  pooling pool = pooling::automatic;
  bool json = false;
};

int embed_all(const embed_command_args& args) {
  std::vector<std::vector<token_id>> lists;
  if (args.ids) lists.push_back(parse_ids(*args.ids, "--ids"));
  const std::vector<std::string> texts = args.texts.read();
  interrupt stop;
  used_devices devices;
  const model loaded = args.model.open(stop, devices);
  embed_options options = args.how.options(loaded, stop);
  progress_bar bar("embedding");
  options.control = {bar.callback(), stop.token()};
  options.normalize = !args.no_normalize;
  options.pooling = args.pool;
  const embeddings vectors = (args.ids ? loaded.embed(lists, options) : loaded.embed(texts, options)).value();
  bar.clear();
  devices.finish();

  const auto width = static_cast<std::size_t>(vectors.width);
  json list = json::array();
  for (std::size_t i = 0; i < vectors.size(); ++i) {
    const std::span<const float> rows = vectors[i];
    json of_text = json::array();
    for (std::size_t at = 0; at < rows.size(); at += width) {
      const std::span<const float> row = rows.subspan(at, width);
      if (args.json) {
        of_text.push_back(std::vector<float>(row.begin(), row.end()));
        continue;
      }
      std::string line;
      for (const float value : row) line += (line.empty() ? "" : " ") + decimal(value, 6);
      print_line(line);
    }
    // A row per token is a list of lists.
    if (args.json) list.push_back(of_text.size() == 1 ? std::move(of_text[0]) : std::move(of_text));
  }
  if (args.json) print_line(dump({{"embeddings", std::move(list)}}));
  return success;
}

}  // namespace

action embed_command(CLI::App& app) {
  auto args = std::make_shared<embed_command_args>();
  args->model.declare(app);
  const std::vector<CLI::Option*> texts = args->texts.declare(app, "Text");
  CLI::Option* ids = app.add_option("--ids", args->ids, "Token ids, taken as they are: 1,2,3 (or @FILE)");
  for (CLI::Option* option : texts) ids->excludes(option);
  app.add_flag("--no-normalize", args->no_normalize, "Do not scale the vectors to length 1");
  app.add_option_function<std::string>(
         "--pooling", [args](const std::string& name) { args->pool = poolings.at(name); },
         "What becomes of the tokens' rows: mean, cls (the first), last, none (all are shown), rank (scores of a "
         "reranker's head) or auto (what the model's file says)")
      ->check(CLI::IsMember(poolings))
      ->default_str("auto");
  args->how.declare(app);
  app.add_flag("--json", args->json, "Print {\"embeddings\": [[...], ...]}; otherwise one vector per line");
  app.footer(
      "Examples:\n"
      "  flywheel embed model.gguf --text \"a red fox\" --text \"a brown dog\" --json\n"
      "  flywheel embed model.gguf --lines questions.txt > vectors.txt\n"
      "  flywheel embed model.gguf --file long.txt --truncate --pooling mean");
  return [args, ids] {
    if (!args->texts.given() && !*ids)
      throw usage_error("embed", "nothing to embed: give --text S, --file F, --lines F or --ids 1,2,3");
    return embed_all(*args);
  };
}

}  // namespace flywheel::cli
