// flywheel perplexity: exp of the mean negative log-likelihood of a text, window by window.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "flywheel/evaluate/score.hpp"

namespace flywheel::cli {
namespace {

struct perplexity_args {
  model_args model;
  session_args session;
  adapter_args adapters;
  std::string file;
  bool second_half = false;
  std::int64_t windows = 0;
  bool json = false;
};

int measure(const perplexity_args& args) {
  const std::string text = read_file(args.file);
  interrupt stop;
  used_devices devices;
  const model loaded = args.model.open(stop, devices);
  const auto ctx = static_cast<std::size_t>(args.session.ctx);
  std::vector<evaluate::window> windows = cut_text(loaded, text, args.file, args.session.ctx, args.second_half);
  const bool bos = loaded.tokenizer().special().add_bos && loaded.tokenizer().special().bos >= 0;
  const bool whole = args.windows == 0 || static_cast<std::size_t>(args.windows) >= windows.size();
  if (!whole) windows.resize(static_cast<std::size_t>(args.windows));

  session_options options = args.session.options();
  options.adapters = args.adapters.open(loaded, stop);
  session sequence = loaded.new_session(options).value();
  evaluate::score total;
  progress_bar bar("perplexity");
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < windows.size(); ++i) {
    total += evaluate::score_windows(sequence, std::span(windows).subspan(i, 1), {{}, stop.token()}).value();
    bar.update(i + 1, windows.size(), decimal(total.perplexity().value, 4));
  }
  bar.clear();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  devices.finish();
  const double mean = total.mean_nll().value;
  const auto [perplexity, error] = total.perplexity();
  // Known only when the scored tokens are the whole text.
  const bool bytes_known = whole && !args.second_half && bos && !text.empty();
  const double bits_per_byte = bytes_known ? total.sum / std::log(2.0) / static_cast<double>(text.size()) : 0;
  const double rate = seconds > 0 ? static_cast<double>(total.tokens) / seconds : 0;

  if (args.json) {
    json result = {{"perplexity", perplexity},
                   {"standard_error", error},
                   {"mean_nll", mean},
                   {"tokens_scored", total.positions},
                   {"windows", windows.size()},
                   {"ctx", ctx},
                   {"protocol", args.second_half ? "second-half" : "windows"},
                   {"bos", bos},
                   {"kv_type", args.session.kv_type},
                   {"seconds", seconds},
                   {"tokens_per_second", rate}};
    if (bytes_known) result["bits_per_byte"] = bits_per_byte;
    print_line(dump(result));
    return success;
  }
  print_line("perplexity " + decimal(perplexity, 4) + " +/- " + decimal(error, 4) + ", mean nll " + decimal(mean, 5) +
             (bytes_known ? ", " + decimal(bits_per_byte, 4) + " bits per byte" : std::string()));
  print_line(grouped(total.positions) + " tokens scored in " + grouped(static_cast<std::int64_t>(windows.size())) +
             " windows of " + std::to_string(ctx) + ", " + human_seconds(seconds) + ", " + decimal(rate, 1) +
             " tokens/s");
  return success;
}

}  // namespace

action perplexity_command(CLI::App& app) {
  auto args = std::make_shared<perplexity_args>();
  args->session.ctx = 256;
  args->model.declare(app);
  app.add_option("--file", args->file, "Text to measure on; -: stdin")->required();
  app.add_option("--ctx", args->session.ctx, "Positions of a window")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  app.add_flag("--second-half", args->second_half,
               "llama-perplexity's protocol: chunks of ctx tokens, only the second half of each is scored");
  app.add_option("--windows", args->windows, "Stop after this many windows; default: the whole text")
      ->check(CLI::Range(1, 1 << 30));
  args->session.declare(app, false);
  args->adapters.declare(app);
  app.add_flag("--json", args->json, "Print one JSON object");
  app.footer(
      "The text is encoded in one piece and cut into windows of ctx-1 tokens; each runs by itself behind the start\n"
      "token, and every token is scored given those before it in its window.\n"
      "\nExamples:\n"
      "  flywheel perplexity model.gguf --file eval.txt\n"
      "  flywheel perplexity model.gguf --file wiki.test.raw --ctx 512 --second-half --json");
  return [args] { return measure(*args); };
}

}  // namespace flywheel::cli
