// flywheel evaluate: models against the one that they were made from.
#include "flywheel/evaluate/compare.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/args.hpp"
#include "cli/bench/model.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "cli/quality_plot.hpp"
#include "flywheel/model/open.hpp"

namespace flywheel::cli {
namespace {

struct evaluate_args {
  std::vector<std::string> models, texts, kv_types = {"f16"}, activations = {"auto"};
  std::string plot;
  model_args loading;  ///< Its path: the baseline.
  session_args session;
  adapter_args adapters;  ///< Of the models, not of the baseline.
  std::int64_t windows = 0;
  std::uint64_t memory_mib = 1024;
  bool all_tokens = false, speed = false, json = false;
};

/// How a model is run; the baseline always runs with the first of each, f16 and auto.
struct setting {
  std::string kv_type = "f16", activations = "auto";
};

struct model_report {
  std::string name;
  setting how;
  std::uint64_t bytes = 0;  ///< Of its files.
  double bits_per_weight = 0;
  std::size_t footprint = 0;
  std::vector<evaluate::comparison> texts;
  double kl = 0, kl_error = 0;  ///< Mean over the texts.
  double prefill_tps = 0, decode_tps = 0;
};

session_args session_of(const evaluate_args& args, const setting& how) {
  session_args session = args.session;
  session.kv_type = how.kv_type;
  return session;
}

/// Sizes, before the model is loaded.
model_report sizes_of(const evaluate_args& args, const std::string& path, const setting& how) {
  const io::archive file = open_model_archive(path).value();
  model_report r;
  r.name = path;
  r.how = how;
  r.bytes = file.file_bytes();
  double bytes = 0, weights = 0;
  for (const io::tensor_info& t : file.tensors()) {
    bytes += static_cast<double>(t.bytes);
    weights += static_cast<double>(t.dims.elements());
  }
  r.bits_per_weight = weights > 0 ? 8 * bytes / weights : 0;
  r.footprint = model::footprint(file, session_of(args, how).options()).value().total();
  return r;
}

model open_one(const evaluate_args& args, const std::string& path, const setting& how, const interrupt& stop,
               used_devices& devices) {
  model_args which = args.loading;
  which.path = path;
  which.activations = how.activations;
  return which.open(stop, devices);
}

std::vector<evaluate::baseline> baselines_of(const evaluate_args& args, const interrupt& stop) {
  used_devices devices;
  const model base = open_one(args, args.loading.path, {}, stop, devices);
  std::vector<std::vector<evaluate::window>> texts;
  for (const std::string& file : args.texts) {
    texts.push_back(cut_text(base, read_file(file), file, args.session.ctx, !args.all_tokens));
    if (args.windows > 0) texts.back().resize(std::min(texts.back().size(), static_cast<std::size_t>(args.windows)));
  }
  std::vector<evaluate::baseline> all;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::string& file = args.texts[i];
    progress_bar bar("baseline on " + std::filesystem::path(file).filename().string());
    all.push_back(evaluate::baseline::compute(base, std::move(texts[i]), args.session.options(),
                                              {bar.callback(), stop.token()},
                                              static_cast<std::size_t>(args.memory_mib << 20) / args.texts.size())
                      .value());
  }
  devices.finish();
  return all;
}

/// Runs the model of `r`.
void measure(const evaluate_args& args, const std::vector<evaluate::baseline>& baselines, const interrupt& stop,
             model_report& r) {
  const std::string& path = r.name;
  const session_args session = session_of(args, r.how);
  used_devices devices;
  const model loaded = open_one(args, path, r.how, stop, devices);
  session_options options = session.options();
  options.adapters = args.adapters.open(loaded, stop);
  double variance = 0;
  const auto n = static_cast<double>(baselines.size());
  for (std::size_t i = 0; i < baselines.size(); ++i) {
    progress_bar bar(std::filesystem::path(path).filename().string() + " on " +
                     std::filesystem::path(args.texts[i]).filename().string());
    r.texts.push_back(baselines[i].compare(loaded, options, {bar.callback(), stop.token()}).value());
    r.kl += r.texts.back().kl.value / n;
    variance += std::pow(r.texts.back().kl.error / n, 2);
  }
  r.kl_error = std::sqrt(variance);
  if (args.speed) {
    const model_workload work{512, 64, 0, 1, 3};
    const model_figures f = measure_model(loaded, cost_of(open_model_archive(path).value()), work, session, 0, stop);
    r.prefill_tps = f.prefill_tps.median;
    r.decode_tps = f.decode_tps.median;
  }
  devices.finish();
}

/// The texts' names: of their files, with the folder where two files have one name.
std::vector<std::string> names_of(const std::vector<std::string>& texts) {
  std::vector<std::string> names;
  for (const std::string& text : texts) names.push_back(std::filesystem::path(text).filename().string());
  const std::vector<std::string> files = names;
  for (std::size_t i = 0; i < texts.size(); ++i)
    if (std::count(files.begin(), files.end(), files[i]) > 1)
      names[i] = (std::filesystem::path(texts[i]).parent_path().filename() / files[i]).string();
  return names;
}

/// What of a setting is one of several: ", KV q8_0".
std::string name_of(const evaluate_args& args, const setting& how) {
  return (args.kv_types.size() > 1 ? ", KV " + how.kv_type : "") +
         (args.activations.size() > 1 ? ", activations " + how.activations : "");
}

/// Digits that tell small divergences apart.
std::string nats(double value) { return decimal(value, 5); }
std::string with_error(const evaluate::estimate& e, int digits, double factor = 1) {
  return decimal(factor * e.value, digits) + " ± " +
         (std::isnan(e.error) ? std::string("-") : decimal(factor * e.error, digits));
}

void print_table(const evaluate_args& args, const std::vector<model_report>& reports) {
  const std::vector<std::string> names = names_of(args.texts);
  using side = table::align;
  table rows({{"model"},
              {"size", side::right},
              {"bits/weight", side::right},
              {"memory", side::right},
              {"text"},
              {"perplexity", side::right},
              {"mean KL", side::right},
              {"median", side::right},
              {"99%", side::right},
              {"same top", side::right},
              {"RMS delta p", side::right},
              {args.speed ? "prefill t/s" : "", side::right},
              {args.speed ? "decode t/s" : "", side::right}});
  for (const model_report& r : reports) {
    for (std::size_t i = 0; i < r.texts.size(); ++i) {
      const evaluate::comparison& c = r.texts[i];
      const bool first = i == 0;
      rows.row({first ? r.name + name_of(args, r.how) : "", first ? human_bytes(r.bytes) : "",
                first ? decimal(r.bits_per_weight, 2) : "", first ? human_bytes(r.footprint) : "", names[i],
                with_error(c.perplexity, 3), with_error(c.kl, 5), nats(c.kl_median), nats(c.kl_p99),
                with_error(c.same_top, 2, 100) + "%", with_error(c.delta_p_rms, 2, 100) + "%",
                first && args.speed ? decimal(r.prefill_tps, 1) : "",
                first && args.speed ? decimal(r.decode_tps, 1) : ""});
    }
    if (r.texts.size() > 1) rows.row({"", "", "", "", "all texts", "", with_error({r.kl, r.kl_error}, 5)});
  }
  print(rows.text());
}

json estimate_of(const evaluate::estimate& e) { return {{"value", e.value}, {"error", e.error}}; }

json to_json(const evaluate_args& args, const model_report& r) {
  json texts = json::array();
  for (std::size_t i = 0; i < r.texts.size(); ++i) {
    const evaluate::comparison& c = r.texts[i];
    texts.push_back({{"text", args.texts[i]},
                     {"positions", c.positions},
                     {"perplexity", estimate_of(c.perplexity)},
                     {"baseline_perplexity", estimate_of(c.baseline_perplexity)},
                     {"log_ratio", estimate_of(c.log_ratio)},
                     {"kl", estimate_of(c.kl)},
                     {"kl_median", c.kl_median},
                     {"kl_p90", c.kl_p90},
                     {"kl_p99", c.kl_p99},
                     {"kl_max", c.kl_max},
                     {"same_top", estimate_of(c.same_top)},
                     {"delta_p_rms", estimate_of(c.delta_p_rms)},
                     {"mean_delta_p", c.mean_delta_p}});
  }
  json out = {{"model", r.name},
              {"kv_type", r.how.kv_type},
              {"activations", r.how.activations},
              {"bytes", r.bytes},
              {"bits_per_weight", r.bits_per_weight},
              {"footprint", r.footprint},
              {"kl", estimate_of({r.kl, r.kl_error})},
              {"texts", texts}};
  if (args.speed) {
    out["prefill_tokens_per_second"] = r.prefill_tps;
    out["decode_tokens_per_second"] = r.decode_tps;
  }
  return out;
}

void draw(const evaluate_args& args, const std::vector<model_report>& reports, output_file& file) {
  std::vector<quality_point> points;
  for (const model_report& r : reports)
    points.push_back({std::filesystem::path(r.name).stem().string() + name_of(args, r.how), r.bytes, r.kl, r.kl_error});
  const std::string texts = args.texts.size() == 1 ? std::filesystem::path(args.texts[0]).filename().string()
                                                   : std::to_string(args.texts.size()) + " texts";
  const std::string svg = quality_svg(
      points, "Size and divergence from " + std::filesystem::path(args.loading.path).filename().string(),
      "Lower is nearer to the original, further left is smaller; the line joins what nothing else beats in both. " +
          texts + ", windows of " + std::to_string(args.session.ctx) + " tokens.");
  file.write(std::as_bytes(std::span(svg)));
  file.finish();
}

void print_reports(const evaluate_args& args, const std::vector<model_report>& reports) {
  if (args.json) {
    json list = json::array();
    for (const model_report& r : reports) list.push_back(to_json(args, r));
    print_line(dump({{"baseline", args.loading.path},
                     {"ctx", args.session.ctx},
                     {"protocol", args.all_tokens ? "windows" : "second-half"},
                     {"adapters", args.adapters.given},
                     {"models", list}}));
    return;
  }
  const std::vector<std::string> names = names_of(args.texts);
  std::string line = "against " + printable(args.loading.path);
  for (std::size_t i = 0; i < args.texts.size(); ++i) {
    const evaluate::comparison& c = reports.front().texts[i];
    line += (i == 0 ? ": " : ", ") + printable(names[i]) + " perplexity " + decimal(c.baseline_perplexity.value, 3) +
            " over " + grouped(c.positions) + " tokens";
  }
  print_line(line + "\n");
  print_table(args, reports);
}

int compare_models(const evaluate_args& args) {
  const interrupt stop;
  // What can fail without a model being run fails first.
  std::optional<output_file> plot;
  if (!args.plot.empty()) {
    std::vector<std::string> inputs = args.models;
    inputs.insert(inputs.end(), args.texts.begin(), args.texts.end());
    inputs.push_back(args.loading.path);
    refuse_overwrite(args.plot, "--plot", inputs);
    plot.emplace(args.plot, "--plot");
  }
  std::vector<model_report> reports;
  for (const std::string& path : args.models)
    for (const std::string& kv_type : args.kv_types)
      for (const std::string& activations : args.activations)
        reports.push_back(sizes_of(args, path, {kv_type, activations}));
  const std::vector<evaluate::baseline> baselines = baselines_of(args, stop);
  for (model_report& r : reports) measure(args, baselines, stop, r);
  print_reports(args, reports);
  if (plot) draw(args, reports, *plot);
  return success;
}

}  // namespace

action evaluate_command(CLI::App& app) {
  auto args = std::make_shared<evaluate_args>();
  args->session.ctx = 256;
  app.add_option("MODEL", args->models, "Models to compare: GGUF files or Hugging Face folders")->required();
  app.add_option("--baseline", args->loading.path, "The model that they should equal")->required();
  app.add_option("--text", args->texts, "File with text to compare on; may be repeated; -: stdin")
      ->required()
      ->expected(1)
      ->take_all();
  app.add_option("--ctx", args->session.ctx, "Positions of a window")
      ->check(CLI::Range(4, 1 << 24))
      ->capture_default_str();
  app.add_option("--windows", args->windows, "Stop after this many windows of a text; default: all of it")
      ->check(CLI::Range(1, 1 << 30));
  app.add_flag("--all-tokens", args->all_tokens,
               "Score every token, in windows of ctx-1 tokens behind the start token, as 'flywheel perplexity' does; "
               "default: llama-perplexity's way, the second half of chunks of ctx tokens");
  const auto settings = [&app](const std::string& name, std::vector<std::string>& values, const std::string& help,
                               const std::vector<std::string>& names) {
    app.add_option(name, values, help + "; may be repeated: a row for each")
        ->expected(1)
        ->take_all()
        ->check(CLI::IsMember(names))
        ->capture_default_str();
  };
  settings("--kv-type", args->kv_types, "Type of the models' KV cache; the baseline's is f16", kv_type_names);
  settings("--activations", args->activations, activation_help, activation_names);
  app.add_flag("--speed", args->speed, "Measure prefill (512 tokens) and decoding (64) too");
  args->adapters.declare(app);
  app.get_option("--adapter")
      ->description(
          "Adapter to run the models with, but not the baseline: PATH or PATH:SCALE; may be repeated, and they add up")
      ->excludes("--speed");
  app.add_option("--plot", args->plot, "SVG file to draw divergence against size into");
  app.add_option("--memory", args->memory_mib,
                 "MiB of the baseline's probabilities to keep in memory; what is more goes to a temporary file")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{1} << 30))
      ->capture_default_str();
  args->loading.declare_options(app);
  app.add_flag("--json", args->json, "Print one JSON object");
  app.footer(
      "KL divergence: how much the model's probabilities of the next token differ from the baseline's, in nats. Same\n"
      "top: how often both find the same token most probable. Delta p: by how much the probability of the text's own\n"
      "next token changes. Errors are standard errors over the scored tokens.\n"
      "\nExamples:\n"
      "  flywheel evaluate model-q4_k.gguf --baseline model-f16.gguf --text eval.txt\n"
      "  flywheel evaluate q8.gguf q4.gguf q3.gguf --baseline f16.gguf --text a.txt --text b.txt --plot sizes.svg\n"
      "  flywheel evaluate q4.gguf --baseline f16.gguf --text eval.txt --kv-type f16 --kv-type q8_0 --kv-type q4_0\n"
      "  flywheel evaluate q4.gguf --baseline f16.gguf --text eval.txt --windows 100 --speed --json");
  return [args] { return compare_models(*args); };
}

}  // namespace flywheel::cli
