// flywheel imatrix: importance matrices, collected or shown.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "flywheel/model/open.hpp"
#include "flywheel/quant/importance.hpp"

namespace flywheel::cli {
namespace {

struct imatrix_args {
  std::string model, out, show;
  std::vector<std::string> texts;
  quant::importance_options options;
  unsigned threads = 0;
  bool json = false;
};

/// What an entry says about its tensor in a line.
struct importance_summary {
  std::size_t matrices = 0, unseen = 0;
  double rows = 0;
  double concentration =
      0;  ///< Share of the energy that the 1% of columns with most of it have; 0.01 if all are equal.
};

importance_summary summary_of(const quant::importance_entry& e) {
  importance_summary s;
  s.matrices = e.counts.size();
  s.unseen = static_cast<std::size_t>(std::count(e.counts.begin(), e.counts.end(), 0.0F));
  s.rows = std::accumulate(e.counts.begin(), e.counts.end(), 0.0);
  const auto cols = static_cast<std::size_t>(e.cols);
  std::vector<double> energy(cols);
  for (std::size_t i = 0; i < e.sums.size(); ++i) energy[i % cols] += static_cast<double>(e.sums[i]);
  std::sort(energy.begin(), energy.end(), std::greater<>());
  const double all = std::accumulate(energy.begin(), energy.end(), 0.0);
  const auto top = static_cast<std::ptrdiff_t>((cols + 99) / 100);
  if (all > 0) s.concentration = std::accumulate(energy.begin(), energy.begin() + top, 0.0) / all;
  return s;
}

int show(const imatrix_args& args) {
  const auto matrix = quant::importance_matrix::read(std::filesystem::path(args.show)).value();
  table rows({{"tensor"},
              {"columns", table::align::right},
              {"experts", table::align::right},
              {"rows seen", table::align::right},
              {"in the top 1%", table::align::right}});
  json list = json::array();
  for (const auto& [name, entry] : matrix.entries) {
    const importance_summary s = summary_of(entry);
    const std::string experts = s.matrices == 1 ? ""
                                : s.unseen > 0
                                    ? std::to_string(s.matrices) + ", " + std::to_string(s.unseen) + " unseen"
                                    : std::to_string(s.matrices);
    rows.row({name, grouped(entry.cols), experts, grouped(static_cast<std::int64_t>(s.rows)),
              decimal(100 * s.concentration, 1) + "%"});
    list.push_back({{"tensor", name},
                    {"columns", entry.cols},
                    {"matrices", s.matrices},
                    {"unseen", s.unseen},
                    {"rows", s.rows},
                    {"top_1_percent", s.concentration}});
  }
  if (args.json) {
    print_line(dump({{"file", args.show},
                     {"datasets", matrix.datasets},
                     {"chunks", matrix.chunks},
                     {"chunk_size", matrix.chunk_size},
                     {"tensors", list}}));
    return success;
  }
  std::string from;
  for (const std::string& d : matrix.datasets) from += (from.empty() ? "" : ", ") + d;
  print_line(bold(printable(args.show)) + ": " + std::to_string(matrix.entries.size()) + " tensors, " +
             std::to_string(matrix.chunks) + " chunks" +
             (matrix.chunk_size > 0 ? " of " + std::to_string(matrix.chunk_size) + " tokens" : "") +
             (from.empty() ? "" : ", from " + printable(from)));
  print_line("");
  print(rows.text());
  print_line("\nin the top 1%: share of the squares' sum that the 1% largest columns have (1% if all were equal).");
  return success;
}

int collect(const imatrix_args& args) {
  if (args.model.empty()) throw usage_error("MODEL", "is missing (or --show FILE)");
  if (args.texts.empty()) throw usage_error("TEXT", "is missing: what to run through the model");
  if (args.out.empty()) throw usage_error("--out", "is missing: the file to write");
  std::vector<std::string> inputs = args.texts;
  inputs.push_back(args.model);
  refuse_overwrite(args.out, "--out", inputs);
  output_file(args.out);  // can be written, or this fails before the model runs
  std::string text;
  for (const std::string& file : args.texts) {
    if (!text.empty() && text.back() != '\n') text += '\n';
    text += read_file(file);
  }
  const interrupt stop;
  const io::archive model = open_model_archive(args.model).value();
  context_options shared;
  shared.threads = args.threads;
  quant::importance_options options = args.options;
  options.context = context::create(std::move(shared)).value();
  progress_bar bar("importance");
  options.control = {bar.callback(), stop.token()};
  const auto start = std::chrono::steady_clock::now();
  quant::importance_matrix made = quant::collect_importance(model, text, options).value();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  made.datasets = args.texts;
  made.write(std::filesystem::path(args.out)).value();
  bar.clear();
  const std::int64_t tokens = static_cast<std::int64_t>(made.chunks) * made.chunk_size;
  if (args.json)
    print_line(dump({{"file", args.out},
                     {"tensors", made.entries.size()},
                     {"chunks", made.chunks},
                     {"chunk_size", made.chunk_size},
                     {"tokens", tokens},
                     {"seconds", seconds}}));
  else
    print_line(printable(args.out) + ": " + grouped(static_cast<std::int64_t>(made.entries.size())) + " tensors, " +
               grouped(tokens) + " tokens in " + grouped(made.chunks) + " chunks of " +
               std::to_string(made.chunk_size) + ", " + human_seconds(seconds));
  return success;
}

}  // namespace

action imatrix_command(CLI::App& app) {
  auto args = std::make_shared<imatrix_args>();
  app.add_option("MODEL", args->model, "Model to run: a GGUF file or a Hugging Face folder");
  app.add_option("TEXT", args->texts, "Calibration texts, one after the other; -: stdin");
  app.add_option("-o,--out", args->out, "File to write: GGUF, as llama-imatrix does");
  app.add_option("--chunk", args->options.chunk, "Tokens of a window")
      ->check(CLI::Range(4, 1 << 20))
      ->capture_default_str();
  app.add_option("--chunks", args->options.max_chunks,
                 "At most so many windows, evenly from the text; default: all of it")
      ->check(CLI::Range(1, 1 << 30));
  app.add_option("-t,--threads", args->threads, "Threads to use; default: one per physical core")
      ->check(CLI::Range(1, 4096));
  app.add_option("--show", args->show, "Show an importance matrix (GGUF, or the older .dat) instead");
  app.add_flag("--json", args->json, "Print one JSON object");
  app.footer(
      "Sums the squares of what goes into every weight, by column, while the texts run through the model; "
      "quantization\n"
      "then keeps exact what is multiplied with much. The text is cut into chunks that begin with the start token.\n"
      "\nExamples:\n"
      "  flywheel imatrix model-f16.gguf calibration.txt -o model.imatrix.gguf\n"
      "  flywheel imatrix model-f16.gguf a.txt b.txt -o model.imatrix.gguf --chunks 120 --chunk 256\n"
      "  flywheel imatrix --show model.imatrix.gguf");
  return [args] { return args->show.empty() ? collect(*args) : show(*args); };
}

}  // namespace flywheel::cli
