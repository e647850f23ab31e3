// flywheel rerank: documents sorted by how well they answer a query.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"

namespace flywheel::cli {
namespace {

struct rerank_args {
  model_args model;
  std::string query;
  text_args documents;
  embed_args how;
  bool json = false;
};

int rerank_all(const rerank_args& args) {
  const std::vector<std::string> documents = args.documents.read();
  interrupt stop;
  used_devices devices;
  const model loaded = args.model.open(stop, devices);
  embed_options options = args.how.options(loaded, stop);
  progress_bar bar("ranking");
  options.control = {bar.callback(), stop.token()};
  const std::vector<float> scores = loaded.rerank(args.query, documents, options).value();
  bar.clear();
  devices.finish();
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  if (args.json) {
    json ranking = json::array();
    for (const std::size_t i : order) ranking.push_back({{"index", i}, {"score", scores[i]}});
    print_line(dump({{"scores", scores}, {"ranking", std::move(ranking)}}));
    return success;
  }
  table shown({{"score", table::align::right}, {"text", table::align::right}, {"document"}});
  for (const std::size_t i : order)
    shown.row({decimal(scores[i], 4), std::to_string(i + 1), shortened(printable(documents[i]), 72)});
  print(shown.text());
  return success;
}

}  // namespace

action rerank_command(CLI::App& app) {
  auto args = std::make_shared<rerank_args>();
  args->model.declare(app);
  app.add_option("--query", args->query, "What the documents should answer")->required();
  args->documents.declare(app, "Document");
  args->how.declare(app);
  app.add_flag("--json", args->json,
               "Print {\"scores\": [...], \"ranking\": [{\"index\", \"score\"}, ...]}; otherwise a table, best first");
  app.footer(
      "MODEL is a reranker: an encoder with a classification head, or a decoder whose file says how to ask it.\n"
      "\nExamples:\n"
      "  flywheel rerank model.gguf --query \"what do foxes eat\" --text \"Foxes eat mice.\" --text \"It rains.\"\n"
      "  flywheel rerank model.gguf --query \"tax law\" --lines passages.txt --truncate --json");
  return [args] {
    if (!args->documents.given()) throw usage_error("rerank", "nothing to rank: give --text S, --file F or --lines F");
    return rerank_all(*args);
  };
}

}  // namespace flywheel::cli
