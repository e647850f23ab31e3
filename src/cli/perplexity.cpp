// flywheel perplexity: exp of the mean negative log-likelihood of a text, window by window.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"

namespace flywheel::cli {
namespace {

struct perplexity_args {
  model_args model;
  session_args session;
  std::string file;
  bool second_half = false;
  std::int64_t windows = 0;
  bool json = false;
};

/// What is run in one go, and which of its tokens count.
struct window {
  std::vector<token_id> ids;
  std::size_t first_scored = 1;  ///< ids[first_scored ..] are scored.
  std::size_t text_tokens = 0;   ///< How many of the ids are the text's.
};

/// Consecutive windows of the text, each by itself behind BOS: every token of the text is scored. A vocabulary without
/// BOS gives windows whose first token cannot be scored.
std::vector<window> whole_windows(const std::vector<token_id>& text, std::size_t ctx, token_id bos) {
  std::vector<window> all;
  const std::size_t room = bos >= 0 ? ctx - 1 : ctx;
  for (std::size_t begin = 0; begin < text.size(); begin += room) {
    const std::size_t count = std::min(room, text.size() - begin);
    window w;
    if (bos >= 0) w.ids.push_back(bos);
    w.ids.insert(w.ids.end(), text.begin() + static_cast<std::ptrdiff_t>(begin),
                 text.begin() + static_cast<std::ptrdiff_t>(begin + count));
    w.text_tokens = count;
    if (w.ids.size() > 1) all.push_back(std::move(w));
  }
  return all;
}

/// llama-perplexity's protocol: whole chunks of ctx tokens of the text encoded with its special tokens; BOS takes the
/// place of a chunk's first token; only predictions made in the second half count (positions ctx/2+1 .. ctx-1).
std::vector<window> half_windows(const std::vector<token_id>& text, std::size_t ctx, token_id bos) {
  std::vector<window> all;
  for (std::size_t begin = 0; begin + ctx <= text.size(); begin += ctx) {
    window w;
    w.ids.assign(text.begin() + static_cast<std::ptrdiff_t>(begin),
                 text.begin() + static_cast<std::ptrdiff_t>(begin + ctx));
    if (bos >= 0) w.ids[0] = bos;
    w.first_scored = ctx / 2 + 1;
    w.text_tokens = ctx;
    all.push_back(std::move(w));
  }
  return all;
}

int measure(const perplexity_args& args) {
  const std::string text = read_file(args.file);
  interrupt stop;
  used_devices devices;
  const model loaded = args.model.open(stop, devices);
  const text::tokenizer& vocabulary = loaded.tokenizer();
  if (!vocabulary) fail(errc::unsupported, args.model.path, "the file carries no vocabulary; a text cannot be encoded");
  const token_id bos = vocabulary.special().add_bos ? vocabulary.special().bos : -1;
  const auto ctx = static_cast<std::size_t>(args.session.ctx);
  const std::vector<token_id> ids = vocabulary.encode(text, {.add_special = args.second_half}).value();
  std::vector<window> windows = args.second_half ? half_windows(ids, ctx, bos) : whole_windows(ids, ctx, bos);
  if (windows.empty())
    fail(errc::invalid_argument, args.file,
         "holds " + std::to_string(ids.size()) + " tokens, too few to measure; use a longer text or a smaller --ctx");
  const bool whole = args.windows == 0 || static_cast<std::size_t>(args.windows) >= windows.size();
  if (!whole) windows.resize(static_cast<std::size_t>(args.windows));

  session sequence = loaded.new_session(args.session.options()).value();
  double sum = 0;
  double squares = 0;
  std::int64_t scored = 0;
  progress_bar bar("perplexity");
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < windows.size(); ++i) {
    sequence.clear();
    const window& w = windows[i];
    const std::vector<float> logprobs = sequence.score(w.ids, {{}, stop.token()}).value();  // [ids - 1]
    for (std::size_t at = w.first_scored; at < w.ids.size(); ++at) {
      const double nll = -static_cast<double>(logprobs[at - 1]);
      sum += nll;
      squares += nll * nll;
      ++scored;
    }
    bar.update(i + 1, windows.size(), decimal(std::exp(sum / static_cast<double>(scored)), 4));
  }
  bar.clear();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  devices.finish();
  if (scored == 0) fail(errc::invalid_argument, "--ctx", "is too small: no token is scored");

  const auto n = static_cast<double>(scored);
  const double mean = sum / n;
  const double perplexity = std::exp(mean);
  // Standard error of the mean, carried through exp.
  const double error = n > 1 ? perplexity * std::sqrt(std::max(0.0, squares / n - mean * mean) / (n - 1)) : 0;
  // Known only when the scored tokens are the whole text.
  const bool bytes_known = whole && !args.second_half && bos >= 0 && !text.empty();
  const double bits_per_byte = bytes_known ? sum / std::log(2.0) / static_cast<double>(text.size()) : 0;
  std::size_t run = 0;
  for (const window& w : windows) run += w.ids.size();
  const double rate = seconds > 0 ? static_cast<double>(run) / seconds : 0;

  if (args.json) {
    json result = {{"perplexity", perplexity},
                   {"standard_error", error},
                   {"mean_nll", mean},
                   {"tokens_scored", scored},
                   {"windows", windows.size()},
                   {"ctx", ctx},
                   {"protocol", args.second_half ? "second-half" : "windows"},
                   {"bos", bos >= 0},
                   {"kv_type", args.session.kv_type},
                   {"seconds", seconds},
                   {"tokens_per_second", rate}};
    if (bytes_known) result["bits_per_byte"] = bits_per_byte;
    print_line(dump(result));
    return success;
  }
  print_line("perplexity " + decimal(perplexity, 4) + " +/- " + decimal(error, 4) + ", mean nll " + decimal(mean, 5) +
             (bytes_known ? ", " + decimal(bits_per_byte, 4) + " bits per byte" : std::string()));
  print_line(grouped(scored) + " tokens scored in " + grouped(static_cast<std::int64_t>(windows.size())) +
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
