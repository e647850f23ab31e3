#include "cli/args.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <random>
#include <system_error>

#include "cli/default_model.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "flywheel/model/open.hpp"

namespace flywheel::cli {

const char* const activation_help =
    "How activations are quantized for quantized weights: 'block' (one f32 scale per 32), 'power' (powers of two, "
    "faster), or 'auto' (what suits the weights)";
const std::vector<std::string> activation_names = {"auto", "block", "power"};
const std::vector<std::string> kv_type_names = {"f16", "f32", "q8_0", "q4_0"};

std::string full_name(const CLI::App& app) {
  return app.get_parent() == nullptr ? app.get_name() : full_name(*app.get_parent()) + " " + app.get_name();
}

std::string see_help(const CLI::App& app) { return "; see '" + full_name(app) + " --help'"; }

void model_args::declare(CLI::App& app, bool model_required) {
  CLI::Option* model = app.add_option(
      "MODEL", path,
      model_required ? "Model: a GGUF file or a Hugging Face folder"
                     : "Model: a GGUF file or a Hugging Face folder; default: the one that comes with flywheel");
  if (model_required) model->required();
  declare_options(app);
  app.add_option("--activations", activations, activation_help)->check(CLI::IsMember(activation_names));
}

void model_args::declare_options(CLI::App& app) {
  app.add_option("-t,--threads", threads, "Threads to use; default: one per physical core")->check(CLI::Range(1, 4096));
  app.add_option("--isa", isa, "Instruction set to use, one of those that 'flywheel info' lists; default: the best");
  devices.declare(app);
  app.add_flag("-v,--verbose", verbose, "Show the library's messages on stderr");
}

context model_args::make_context() const {
  context_options options;
  options.threads = threads;
  options.isa = isa;
  if (activations != "auto")
    options.activations = activations == "block" ? activation_scales::per_block : activation_scales::power_of_two;
  options.log_threshold = verbose ? log_level::debug : log_level::warning;
  options.log = [](log_level level, std::string_view message) {
    const char* names[] = {"debug", "info", "warning", "error"};
    std::fprintf(stderr, "flywheel: %s: %s\n", names[static_cast<int>(level)], printable(message).c_str());
  };
  auto made = context::create(std::move(options));
  if (!made && !isa.empty() && (made.error().code == errc::not_found || made.error().code == errc::unsupported))
    throw usage_error("--isa", made.error().to_string());
  return std::move(made).value();
}

model model_args::open(const interrupt& stop, used_devices& used) const {
  const std::span<const std::byte> built_in = default_model();
  if (path.empty() && built_in.empty())
    throw usage_error("MODEL", "is missing, and this build has no default model; name a GGUF file");
  model_options options;
  options.context = make_context();
  used = used_devices(devices, options.context, verbose);
  options.devices = used.list();
  progress_bar bar("loading " +
                   (path.empty() ? default_model_name() : std::filesystem::path(path).filename().string()));
  options.control = {bar.callback(), stop.token()};
  if (path.empty()) return model::open(io::archive::open(built_in).value(), options).value();
  return model::open(std::filesystem::path(path), options).value();
}

void session_args::declare(CLI::App& app, bool with_ctx) {
  if (with_ctx)
    app.add_option("--ctx", ctx, "Tokens the context holds; default: what the model was trained for, at most 4096")
        ->check(CLI::Range(1, 1 << 24));
  app.add_option("--kv-type", kv_type,
                 "Type of the KV cache: f16, f32, q8_0 (half of f16's memory, nearly the same results) "
                 "or q4_0 (a third: 5 bits per number)")
      ->check(CLI::IsMember(kv_type_names))
      ->capture_default_str();
}

session_options session_args::options() const {
  session_options options;
  options.n_ctx = ctx;
  options.kv_type = find_dtype(kv_type)->type;  // one of those that declare() allows
  return options;
}

void adapter_args::declare(CLI::App& app) {
  app.add_option("--adapter", given,
                 "Adapter (LoRA, DoRA) to run the model with: a GGUF file or a PEFT folder, with :SCALE behind it for "
                 "more or less of it; may be repeated")
      ->type_name("PATH[:SCALE]")
      ->expected(1)
      ->take_all();
}

std::pair<std::string, float> split_scale(const std::string& text) {
  std::error_code ignored;
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos || std::filesystem::exists(text, ignored)) return {text, 1.0F};
  const std::string path = text.substr(0, colon), number = text.substr(colon + 1);
  char* end = nullptr;
  const float scale = std::strtof(number.c_str(), &end);
  const bool whole = !number.empty() && *end == 0 && std::isfinite(scale);
  if (!whole && std::filesystem::exists(path, ignored))
    throw usage_error("--adapter", "'" + number + "' is no scale; write PATH or PATH:0.5");
  return whole ? std::pair(path, scale) : std::pair(text, 1.0F);
}

std::vector<adapter_use> adapter_args::open(const model& base, const interrupt& stop) const {
  std::vector<adapter_use> uses;
  for (const std::string& text : given) {
    const auto [path, scale] = split_scale(text);
    progress_bar bar("loading " + std::filesystem::path(path).filename().string());
    uses.push_back({adapter::open(base, path, {bar.callback(), stop.token()}).value(), scale});
  }
  return uses;
}

std::vector<evaluate::window> cut_text(const model& m, std::string_view text, const std::string& file, std::int32_t ctx,
                                       bool second_half) {
  evaluate::text_options options;
  options.ctx = ctx;
  options.protocol = second_half ? evaluate::protocol::second_half : evaluate::protocol::windows;
  auto windows = evaluate::cut_windows(m.tokenizer(), text, options);
  if (!windows) fail(windows.error().code, windows.error().where == "ctx" ? "--ctx" : file, windows.error().message);
  return *std::move(windows);
}

std::vector<CLI::Option*> text_args::declare(CLI::App& app, const std::string& what) {
  return {app.add_option("--text", texts, what + "; may be repeated")->expected(1)->take_all(),
          app.add_option("--file", files, "File with one; may be repeated; -: stdin")->expected(1)->take_all(),
          app.add_option("--lines", lines, "File with one per line; -: stdin")};
}

std::vector<std::string> text_args::read() const {
  std::vector<std::string> all = texts;
  for (const std::string& file : files) all.push_back(read_file(file));
  if (lines.empty()) return all;
  const std::string text = read_file(lines);
  for (std::string_view rest = text; !rest.empty();) {
    std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) all.emplace_back(line);
  }
  return all;
}

void embed_args::declare(CLI::App& app) {
  app.add_flag("--truncate", truncate, "Cut texts that are too long instead of refusing them");
  app.add_option("--ctx", session.ctx, "Tokens a text may have; default: as many as the model was trained for")
      ->check(CLI::Range(1, 1 << 24));
  session.declare(app, false);
  adapters.declare(app);
}

embed_options embed_args::options(const model& loaded, const interrupt& stop) const {
  const session_options session_part = session.options();
  embed_options options;
  options.truncate = truncate;
  options.n_ctx = session_part.n_ctx;
  options.kv_type = session_part.kv_type;
  options.adapters = adapters.open(loaded, stop);
  return options;
}

void sampler_args::declare(CLI::App& app) {
  const std::string group = "Sampling";
  CLI::Option* plain = app.add_flag("--greedy", greedy, "Always take the most probable token")->group(group);
  const auto add = [&](const std::string& name, auto& value, const std::string& help) {
    return app.add_option(name, value, help)->group(group)->capture_default_str();
  };
  add("--temp", values.temperature, "Temperature; 0 is --greedy")->excludes(plain);
  add("--top-k", values.top_k, "Keep the K most probable tokens; 0: off");
  add("--top-p", values.top_p, "Keep the most probable tokens with this total probability; 1: off");
  add("--min-p", values.min_p, "Keep tokens with this part of the best one's probability; 0: off");
  add("--typical", values.typical_p, "Keep locally typical tokens with this total probability; 1: off");
  add("--repeat-penalty", values.repetition_penalty, "Make tokens that were there less probable; 1: off");
  add("--frequency-penalty", values.frequency_penalty, "Subtracted from a logit per occurrence; 0: off");
  add("--presence-penalty", values.presence_penalty, "Subtracted from a logit that occurred; 0: off");
  add("--penalty-window", values.penalty_window, "How many last tokens the penalties look at; -1: all");
  app.add_option("--logit-bias", logit_bias, "ID=V: add V to a token's logit (-inf forbids it); may be repeated")
      ->group(group)
      ->expected(1)
      ->take_all();
  app.add_option("--seed", seed, "Seed of the random choice; default: a new one each time")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
}

sampler_options sampler_args::options() const {
  sampler_options options = values;
  if (greedy) options.temperature = 0;
  for (const std::string& pair : logit_bias) {
    const std::size_t equals = pair.find('=');
    const std::string where = "--logit-bias " + pair;
    if (equals == std::string::npos) throw usage_error(where, "must look like ID=V, for example 42=-1.5");
    const std::vector<token_id> ids = parse_ids(std::string_view(pair).substr(0, equals), "--logit-bias");
    if (ids.size() != 1) throw usage_error(where, "must name one token id, for example 42=-1.5");
    const std::string number = pair.substr(equals + 1);
    char* end = nullptr;
    const float value = std::strtof(number.c_str(), &end);
    if (number.empty() || *end != '\0') throw usage_error(where, "'" + number + "' is not a number");
    options.logit_bias.emplace_back(ids[0], value);
  }
  options.seed = seed ? *seed : std::random_device{}();
  if (auto made = sampler::create(options); !made) throw usage_error("sampling options", made.error().to_string());
  return options;
}

std::vector<token_id> parse_ids(std::string_view list, const std::string& option) {
  std::string from_file;
  if (list.starts_with('@')) {
    from_file = read_file(std::filesystem::path(std::string(list.substr(1))));
    list = from_file;
  }
  std::vector<token_id> ids;
  const auto separates = [](char c) { return c == ',' || c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
  const auto trim = [&] {
    while (!list.empty() && separates(list.front())) list.remove_prefix(1);
    while (!list.empty() && separates(list.back())) list.remove_suffix(1);
  };
  trim();
  if (list.size() >= 2 && list.front() == '[' && list.back() == ']') {
    list = list.substr(1, list.size() - 2);
    trim();
  }
  while (!list.empty()) {
    const auto length = static_cast<std::size_t>(std::find_if(list.begin(), list.end(), separates) - list.begin());
    const std::string_view word = list.substr(0, length);
    token_id id = 0;
    const auto [end, failed] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (failed != std::errc() || end != word.data() + word.size() || id < 0)
      throw usage_error(option, "'" + shortened(printable(word), 40) + "' is not a token id; write ids as 1,2,3");
    ids.push_back(id);
    list.remove_prefix(length);
    trim();
  }
  return ids;
}

void require_room(const session& sequence, std::size_t tokens, const std::string& advice) {
  if (tokens <= static_cast<std::size_t>(sequence.n_ctx())) return;
  fail(errc::context_full, "--ctx",
       "the context holds " + std::to_string(sequence.n_ctx()) + " tokens, " + std::to_string(tokens) +
           " were given; " + advice);
}

text::tokenizer open_tokenizer(const std::filesystem::path& path) {
  const io::archive file = open_model_archive(path).value();
  auto made = text::tokenizer::from_metadata(file.metadata());
  if (!made && made.error().where.find(path.string()) == std::string::npos)
    made.error().where = path.string() + (made.error().where.empty() ? "" : ": " + made.error().where);
  return std::move(made).value();
}

}  // namespace flywheel::cli
