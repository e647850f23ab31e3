// flywheel embed: one vector per text.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
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

struct embed_args {
  model_args model;
  session_args session;
  std::vector<std::string> texts;
  std::vector<std::string> files;
  std::string lines;
  std::optional<std::string> ids;
  bool no_normalize = false;
  std::string pooling = "mean";
  bool json = false;
};

/// The token ids of every text, in the order --text, --file, --lines.
std::vector<std::vector<token_id>> inputs(const embed_args& args, const model& loaded) {
  std::vector<std::vector<token_id>> all;
  if (args.ids) {
    all.push_back(parse_ids(*args.ids, "--ids"));
    return all;
  }
  if (!loaded.tokenizer())
    fail(errc::unsupported, args.model.path, "the file carries no vocabulary; give token ids with --ids");
  const auto add = [&](std::string_view text) {
    all.push_back(loaded.tokenizer().encode(text, {.add_special = true}).value());
  };
  for (const std::string& text : args.texts) add(text);
  for (const std::string& file : args.files) add(read_file(file));
  if (!args.lines.empty()) {
    const std::string text = read_file(args.lines);
    for (std::string_view rest = text; !rest.empty();) {
      std::string_view line = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(rest.size(), line.size() + 1));
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (!line.empty()) add(line);
    }
  }
  return all;
}

int embed_all(const embed_args& args) {
  if (args.ids) (void)parse_ids(*args.ids, "--ids");
  interrupt stop;
  const model loaded = args.model.open(stop);
  const auto all = inputs(args, loaded);
  session_options options = args.session.options();
  if (options.n_ctx == 0) {  // never too small for what was asked
    std::size_t longest = 0;
    for (const auto& ids : all) longest = std::max(longest, ids.size());
    if (static_cast<std::int64_t>(longest) > std::min(loaded.info().n_ctx_train, 4096))
      options.n_ctx = static_cast<std::int32_t>(longest);
  }
  session sequence = loaded.new_session(options).value();
  const auto how = args.pooling == "last" ? session::pooling::last : session::pooling::mean;
  json vectors = json::array();
  progress_bar bar("embedding");
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i].empty())
      fail(errc::invalid_argument, "text " + std::to_string(i + 1), "holds no tokens; give some text");
    require_room(sequence, all[i].size(), "choose a larger --ctx or none, or give shorter texts");
    const std::vector<float> vector = sequence.embed(all[i], how, !args.no_normalize, {{}, stop.token()}).value();
    bar.update(i + 1, all.size());
    if (args.json) {
      vectors.push_back(vector);
      continue;
    }
    std::string line;
    for (const float value : vector) line += (line.empty() ? "" : " ") + decimal(value, 6);
    bar.clear();
    print_line(line);
  }
  bar.clear();
  if (args.json) print_line(dump({{"embeddings", std::move(vectors)}}));
  return success;
}

}  // namespace

action embed_command(CLI::App& app) {
  auto args = std::make_shared<embed_args>();
  args->model.declare(app);
  CLI::Option* text = app.add_option("--text", args->texts, "Text; may be repeated")->expected(1)->take_all();
  CLI::Option* file =
      app.add_option("--file", args->files, "File, as one text; may be repeated; -: stdin")->expected(1)->take_all();
  CLI::Option* lines = app.add_option("--lines", args->lines, "File with one text per line; -: stdin");
  CLI::Option* ids = app.add_option("--ids", args->ids, "Token ids, taken as they are: 1,2,3 (or @FILE)");
  ids->excludes(text)->excludes(file)->excludes(lines);
  app.add_flag("--no-normalize", args->no_normalize, "Do not scale the vectors to length 1");
  app.add_option("--pooling", args->pooling, "What of the positions is taken: mean or last")
      ->check(CLI::IsMember({"mean", "last"}))
      ->capture_default_str();
  args->session.declare(app);
  app.add_flag("--json", args->json, "Print {\"embeddings\": [[...], ...]}; otherwise one vector per line");
  app.footer(
      "Examples:\n"
      "  flywheel embed model.gguf --text \"a red fox\" --text \"a brown dog\" --json\n"
      "  flywheel embed model.gguf --lines questions.txt > vectors.txt");
  return [args, text, file, lines, ids] {
    if (!*text && !*file && !*lines && !*ids)
      throw usage_error("embed", "nothing to embed: give --text S, --file F, --lines F or --ids 1,2,3");
    return embed_all(*args);
  };
}

}  // namespace flywheel::cli
