// flywheel run: text from a prompt.
#include "cli/run.hpp"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>

#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"

namespace flywheel::cli {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string_view name_of(stop_reason reason) {
  switch (reason) {
    case stop_reason::length:
      return "length";
    case stop_reason::end_of_text:
      return "end_of_text";
    case stop_reason::stop_text:
      return "stop_text";
    case stop_reason::callback:
      return "callback";
    case stop_reason::cancelled:
      return "cancelled";
    case stop_reason::context_full:
      return "context_full";
  }
  return "unknown";
}

std::vector<token_id> prompt_ids(const run_args& args, const model& loaded) {
  if (args.ids) return parse_ids(*args.ids, "--ids");
  const std::string text = args.prompt ? *args.prompt : read_file(args.file);
  if (!loaded.tokenizer())
    fail(errc::unsupported, args.model.path, "the file carries no vocabulary; give the prompt as token ids with --ids");
  return loaded.tokenizer().encode(text, {.add_special = true, .parse_special = args.parse_special}).value();
}

struct timing {
  double prefill = 0, decode = 0;
  std::size_t prompt_tokens = 0, tokens = 0;
  [[nodiscard]] double prefill_tps() const { return prefill > 0 ? static_cast<double>(prompt_tokens) / prefill : 0; }
  [[nodiscard]] double decode_tps() const { return decode > 0 ? static_cast<double>(tokens) / decode : 0; }
};

std::string piece_text(const model& loaded, token_id id) {
  if (!loaded.tokenizer()) return {};
  const token_id one[] = {id};
  return loaded.tokenizer().decode(one, {.render_special = true, .strip_leading_space = false}).value_or(std::string());
}

/// The most probable tokens of step `i`, most probable first.
std::span<const token_probability> top_of(const generation& made, std::size_t i) {
  const std::size_t each = made.ids.empty() ? 0 : made.top.size() / made.ids.size();
  return std::span(made.top).subspan(i * each, each);
}

json logprobs_json(const model& loaded, const generation& made) {
  json all = json::array();
  for (std::size_t i = 0; i < made.ids.size(); ++i) {
    json top = json::array();
    for (const token_probability& t : top_of(made, i))
      top.push_back({{"id", t.id}, {"text", piece_text(loaded, t.id)}, {"logprob", t.logprob}});
    all.push_back({{"id", made.ids[i]},
                   {"text", piece_text(loaded, made.ids[i])},
                   {"logprob", made.logprobs[i]},
                   {"top", std::move(top)}});
  }
  return all;
}

std::string logprobs_table(const model& loaded, const generation& made) {
  table rows({{"id", table::align::right}, {"text"}, {"logprob", table::align::right}, {"most probable"}});
  for (std::size_t i = 0; i < made.ids.size(); ++i) {
    std::string top;
    for (const token_probability& t : top_of(made, i))
      top += (top.empty() ? "" : "  ") + printable(piece_text(loaded, t.id)) + " " +
             decimal(100 * std::exp(static_cast<double>(t.logprob)), 1) + "%";
    rows.row({std::to_string(made.ids[i]), piece_text(loaded, made.ids[i]), decimal(made.logprobs[i], 4), top});
  }
  return rows.text();
}

int generate_once(const run_args& args, const model& loaded, const interrupt& stop) {
  const std::vector<token_id> prompt = prompt_ids(args, loaded);
  if (prompt.empty())
    throw usage_error(args.ids ? "--ids" : "prompt",
                      "holds no tokens and this model has no start token; give some text");
  session sequence = loaded.new_session(make_session_options(args, loaded, stop)).value();

  if (!args.slide)
    require_room(sequence, prompt.size(), "choose a larger --ctx, or --slide to let the older half go when it is full");

  timing times;
  times.prompt_tokens = prompt.size();
  auto start = std::chrono::steady_clock::now();
  {
    progress_bar bar("reading the prompt");
    sequence.prefill(prompt, {bar.callback(), stop.token()}).value();
  }
  times.prefill = seconds_since(start);

  generate_options how = make_generate_options(args);
  how.control.stop = stop.token();
  text_stream out;
  bool write_cancelled = false;  // Ctrl-C came while the output was blocked
  const auto each = [&](const generation_step& step) {
    try {
      if (!args.json) out.write(step.text);
    } catch (const bad_result& e) {
      if (e.why().code != errc::cancelled) throw;
      write_cancelled = true;
    }
    return !write_cancelled;
  };
  generation made;
  start = std::chrono::steady_clock::now();
  if (how.max_tokens != 0) made = sequence.generate(how, each).value();
  if (write_cancelled) return interrupted;
  times.decode = seconds_since(start);
  times.tokens = made.ids.size();

  if (args.json) {
    json result = {{"prompt_ids", prompt},
                   {"ids", made.ids},
                   {"text", made.text},
                   {"stop", name_of(made.reason)},
                   {"seed", how.sampler.seed},
                   {"timings",
                    {{"prefill_tps", times.prefill_tps()},
                     {"decode_tps", times.decode_tps()},
                     {"prefill_seconds", times.prefill},
                     {"decode_seconds", times.decode}}}};
    if (args.logprobs) result["logprobs"] = logprobs_json(loaded, made);
    print_line(dump(result));
  } else {
    out.finish();
    if (args.logprobs) print(logprobs_table(loaded, made));
    finish_stdout();
    if (made.reason == stop_reason::context_full)
      std::fprintf(stderr,
                   "flywheel: warning: the context of %d tokens is full; --ctx makes it larger, --slide goes on\n",
                   sequence.n_ctx());
    if (is_terminal(stderr))
      std::fprintf(stderr, "[prompt: %zu tokens, %.1f/s; text: %zu tokens, %.1f/s; ended by %s]\n", prompt.size(),
                   times.prefill_tps(), times.tokens, times.decode_tps(), std::string(name_of(made.reason)).c_str());
  }
  return made.reason == stop_reason::cancelled ? interrupted : success;
}

}  // namespace

session_options make_session_options(const run_args& args, const model& loaded, const interrupt& stop) {
  session_options options = args.session.options();
  options.when_full = args.slide ? when_full::slide : when_full::refuse;
  options.keep = args.keep;
  options.adapters = args.adapters.open(loaded, stop);
  return options;
}

generate_options make_generate_options(const run_args& args) {
  generate_options options;
  options.max_tokens = args.max_tokens;
  options.sampler = args.sampler.options();
  options.ignore_eos = args.ignore_eos;
  options.stop_texts = args.stop_texts;
  options.logprobs = args.logprobs.has_value();
  options.top_logprobs = args.logprobs.value_or(0);
  return options;
}

text_stream::text_stream() : terminal_(is_terminal(stdout)) {}

void text_stream::write(std::string_view text) {
  if (text.empty()) return;
  print(terminal_ ? printable_lines(text) : std::string(text));
  finish_stdout();
  at_line_start_ = text.back() == '\n';
}

void text_stream::finish() {
  if (!at_line_start_) print("\n");
  at_line_start_ = true;
}

action run_command(CLI::App& app) {
  auto args = std::make_shared<run_args>();
  args->model.declare(app, false);
  CLI::Option* prompt = app.add_option("-p,--prompt", args->prompt, "Text to continue");
  CLI::Option* ids = app.add_option("--ids", args->ids, "Prompt as token ids, taken as they are: 1,2,3 (or @FILE)");
  CLI::Option* file = app.add_option("-f,--file", args->file, "Read the prompt from a file; -: stdin");
  CLI::Option* interactive =
      app.add_flag("-i,--interactive", args->interactive, "Read lines and continue after each; default on a terminal");
  prompt->excludes(ids)->excludes(file);
  ids->excludes(file);
  app.add_flag("--parse-special", args->parse_special, "Special tokens in the prompt, such as </s>, are those tokens");
  app.add_option("-n,--max-tokens", args->max_tokens, "Tokens to generate at most; -1: until the context is full")
      ->check(CLI::Range(-1, std::numeric_limits<std::int32_t>::max()))
      ->capture_default_str();
  app.add_flag("--ignore-eos", args->ignore_eos, "Go on after the end of the text");
  app.add_option("--stop", args->stop_texts, "End before this text; may be repeated")->expected(1)->take_all();
  app.add_option("--logprobs", args->logprobs, "Show each token's log-probability and the K most probable tokens")
      ->check(CLI::Range(0, 1000));
  args->session.declare(app);
  args->adapters.declare(app);
  CLI::Option* slide =
      app.add_flag("--slide", args->slide, "When the context is full, forget its older half and go on");
  app.add_option("--keep", args->keep, "Tokens at the front that --slide keeps")
      ->check(CLI::Range(0, 1 << 24))
      ->needs(slide);
  CLI::Option* as_json = app.add_flag("--json", args->json, "Print one JSON object at the end");
  interactive->excludes(prompt)->excludes(ids)->excludes(file)->excludes(as_json);
  args->sampler.declare(app);
  app.footer(
      "Examples:\n"
      "  flywheel run model.gguf -p \"Once upon a time\" -n 100\n"
      "  flywheel run model.gguf -p \"2 + 2 =\" --greedy --stop $'\\n'\n"
      "  flywheel run model.gguf --ids 1,415,332 --json\n"
      "  flywheel run                        talk to the model that comes with flywheel");
  return [args, prompt, ids, file] {
    const bool given = *prompt || *ids || *file;
    const bool interactive_mode = args->interactive || (!given && !args->json && is_terminal(stdin));
    if (!given && !interactive_mode)
      throw usage_error("run",
                        "no prompt: give one with -p TEXT, --ids 1,2,3 or --file FILE; see 'flywheel run --help'");
    if (args->ids) (void)parse_ids(*args->ids, "--ids");  // what is wrong with the command line is said before loading
    (void)args->sampler.options();
    interrupt stop;
    used_devices devices;
    const model loaded = args->model.open(stop, devices);
    const int code = interactive_mode
                         ? interactive_session(*args, loaded, make_session_options(*args, loaded, stop), stop)
                         : generate_once(*args, loaded, stop);
    devices.finish();
    return code;
  };
}

}  // namespace flywheel::cli
