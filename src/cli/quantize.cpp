// flywheel quantize: a model in smaller types.
#include "flywheel/quant/quantize_model.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "flywheel/model/open.hpp"

namespace flywheel::cli {
namespace {

struct quantize_args {
  std::string model, out, type, method = "search", imatrix;
  std::string target_size, memory;
  std::int32_t ctx = 256;
  std::int64_t windows = 256;
  std::optional<double> target_bpw, max_kl;
  std::vector<std::string> tensor_types, calibration;
  unsigned threads = 0;
  bool pure = false, allow_requantize = false, dry_run = false, rotate = false, json = false;
};

/// "REGEX=TYPE"; the type is what follows the last '='.
quant::type_override parse_override(const std::string& text) {
  const std::size_t at = text.rfind('=');
  if (at == std::string::npos || at == 0) throw usage_error("--tensor-type", "'" + text + "' is not REGEX=TYPE");
  const dtype_info* type = find_dtype(text.substr(at + 1));
  if (type == nullptr) throw usage_error("--tensor-type", "'" + text.substr(at + 1) + "' is not a tensor type");
  return {text.substr(0, at), type->type};
}

/// "3.5G", "700M", "100000": bytes, in powers of 1024.
std::uint64_t parse_size(const std::string& text, const char* option) {
  double number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  const std::map<std::string_view, double> units = {{"", 1},         {"K", 0x1p10},   {"M", 0x1p20},  {"G", 0x1p30},
                                                    {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}};
  const auto known = units.find(unit);
  if (failure != std::errc() || known == units.end() || !(number > 0) || number * known->second > 0x1p60)
    throw usage_error(option, "'" + text + "' is not a positive number of bytes, such as 700M or 3.5G");
  return static_cast<std::uint64_t>(number * known->second);
}

/// Which option an error of the library is about.
std::string option_of(const error& e) {
  const std::map<std::string, std::string, std::less<>> options = {{"type", "--type"},
                                                                   {"overrides", "--tensor-type"},
                                                                   {"importance", "--imatrix"},
                                                                   {"calibration", "--calibration"},
                                                                   {"target", "--target-bpw, --target-size, --max-kl"},
                                                                   {"allow_requantize", "--allow-requantize"}};
  const auto at = options.find(e.where);
  return e.code == errc::invalid_argument && at != options.end() ? at->second : std::string();
}

/// Where the bytes went: kinds of tensors by type.
std::string kind_table(const quant::quantize_report& report) {
  struct sum {
    std::uint64_t tensors = 0, bytes = 0;
    double share = 0;
  };
  std::map<std::pair<std::string, std::string>, sum> cells;
  for (const quant::quantized_tensor& t : report.tensors) {
    // "blk.3.attn_q.weight" -> "attn_q"
    std::string kind = t.name.substr(0, t.name.rfind('.'));
    kind = kind.substr(kind.rfind('.') == std::string::npos ? 0 : kind.rfind('.') + 1);
    sum& s = cells[{kind, std::string(to_string(t.to))}];
    ++s.tensors;
    s.bytes += t.bytes;
    s.share += t.share;
  }
  using enum table::align;
  table shown({{"tensors", left}, {"type"}, {"number", right}, {"bytes", right}, {"share of KL", right}});
  for (const auto& [cell, s] : cells)
    if (s.share > 0 || cell.second != "F32")
      shown.row({cell.first, cell.second, grouped(static_cast<std::int64_t>(s.tensors)), human_bytes(s.bytes),
                 decimal(100 * s.share, 1) + "%"});
  return shown.text(2);
}

/// Bytes of every type, the largest first.
std::string type_table(const quant::quantize_report& report) {
  struct sum {
    std::uint64_t tensors = 0, bytes = 0;
    std::int64_t elements = 0;
  };
  std::map<std::string, sum, std::less<>> by_type;
  for (const quant::quantized_tensor& t : report.tensors) {
    sum& s = by_type[std::string(to_string(t.to))];
    ++s.tensors;
    s.bytes += t.bytes;
    s.elements += t.elements;
  }
  std::vector<std::pair<std::string, sum>> rows(by_type.begin(), by_type.end());
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.bytes > b.second.bytes; });
  using enum table::align;
  table shown({{"type"}, {"tensors", right}, {"weights", right}, {"bits", right}, {"bytes", right}});
  for (const auto& [name, s] : rows)
    shown.row({name, grouped(static_cast<std::int64_t>(s.tensors)), grouped(s.elements),
               decimal(8 * static_cast<double>(s.bytes) / static_cast<double>(s.elements), 3), human_bytes(s.bytes)});
  return shown.text(2);
}

json described(const quantize_args& args, const quant::quantize_report& report) {
  json tensors = json::array();
  for (const quant::quantized_tensor& t : report.tensors)
    tensors.push_back({{"name", t.name},
                       {"from", to_string(t.from)},
                       {"to", to_string(t.to)},
                       {"bytes_before", t.bytes_before},
                       {"bytes", t.bytes},
                       {"fallback", t.fallback},
                       {"share", t.share}});
  json all = {{"file", args.out},          {"bytes_before", report.bytes_before},
              {"bytes", report.bytes},     {"bits_per_weight", report.bits_per_weight},
              {"resumed", report.resumed}, {"seconds", report.seconds}};
  if (report.measured) {
    all["predicted_kl"] = *report.predicted_kl;
    all["kl"] = report.measured->kl.value;
    all["kl_error"] = report.measured->kl.error;
  }
  if (!args.dry_run) all["file_bytes"] = std::filesystem::file_size(args.out);
  all["tensors"] = std::move(tensors);
  return all;
}

void show(const quantize_args& args, const quant::quantize_report& report) {
  std::size_t fallbacks = 0;
  for (const quant::quantized_tensor& t : report.tensors) fallbacks += t.fallback ? 1 : 0;
  if (report.measured) print(kind_table(report) + "\n");
  print(type_table(report));
  if (report.measured)
    print_line(
        "  KL divergence on calibration text that no type was chosen with: " + decimal(report.measured->kl.value, 5) +
        " +- " + decimal(report.measured->kl.error, 5) + " (predicted " + decimal(*report.predicted_kl, 5) + ")");
  if (fallbacks > 0)
    print_line("  " + grouped(static_cast<std::int64_t>(fallbacks)) +
               " tensors have rows that are no whole blocks of their type and got another");
  if (report.resumed > 0)
    print_line("  " + grouped(static_cast<std::int64_t>(report.resumed)) +
               " tensors were there from an interrupted run");
  print_line(printable(args.out) + ": " + human_bytes(report.bytes_before) + " -> " + human_bytes(report.bytes) + ", " +
             decimal(report.bits_per_weight, 3) + " bits per weight" +
             (args.dry_run ? "; nothing was written" : ", " + decimal(report.seconds, 1) + " s"));
}

/// CLI11's own check shows the range of doubles.
std::string positive(const std::string& text) {
  double number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure == std::errc() && end == text.data() + text.size() && number > 0 && std::isfinite(number)) return {};
  return "'" + text + "' is not a positive number";
}

int quantize(const quantize_args& args) {
  std::vector<std::string> inputs = args.calibration;
  inputs.push_back(args.model);
  if (!args.imatrix.empty()) inputs.push_back(args.imatrix);
  refuse_overwrite(args.out, "OUT", inputs);
  quant::quantize_options options;
  options.type = args.type;
  options.pure = args.pure;
  options.method = *quant::find_method(args.method);
  options.allow_requantize = args.allow_requantize;
  options.dry_run = args.dry_run;
  options.target_bpw = args.target_bpw;
  options.max_kl = args.max_kl;
  if (!args.target_size.empty()) options.target_bytes = parse_size(args.target_size, "--target-size");
  if (!args.memory.empty()) options.memory = parse_size(args.memory, "--memory");
  options.rotate = args.rotate;
  options.calibration_ctx = args.ctx;
  options.calibration_windows = args.windows;
  for (const std::string& file : args.calibration) options.calibration.push_back({file, read_file(file)});
  quant::importance_matrix importance;
  if (!args.imatrix.empty()) {
    importance = quant::importance_matrix::read(args.imatrix).value();
    options.importance = &importance;
    options.importance_file = args.imatrix;
  }
  for (const std::string& one : args.tensor_types) options.overrides.push_back(parse_override(one));
  const interrupt stop;
  const io::archive from = open_model_archive(args.model).value();
  progress_bar bar("quantizing " + args.model);
  context_options shared;
  shared.threads = args.threads;
  options.context = context::create(std::move(shared)).value();
  options.control = {bar.callback(), stop.token()};
  auto done = quant::quantize_model(from, args.out, options);
  bar.clear();
  if (!done) {
    if (const std::string option = option_of(done.error()); !option.empty())
      throw usage_error(option, done.error().message);
    if (done.error().code == errc::cancelled && std::filesystem::exists(args.out + ".partial"))
      std::fprintf(stderr, "flywheel: interrupted; the same command goes on from %s.partial\n",
                   printable(args.out).c_str());
  }
  const quant::quantize_report& report = done.value();
  if (args.json)
    print_line(dump(described(args, report)));
  else
    show(args, report);
  return success;
}

}  // namespace

action quantize_command(CLI::App& app) {
  auto args = std::make_shared<quantize_args>();
  std::string names;
  for (const std::string_view name : quant::quantize_types()) names += (names.empty() ? "" : ", ") + std::string(name);
  app.add_option("MODEL", args->model, "A Hugging Face folder (config.json, *.safetensors, tokenizer) or a GGUF file")
      ->required();
  app.add_option("OUT", args->out, "File to write: GGUF, or safetensors if the name ends with .safetensors")
      ->required();
  CLI::Option* const type = app.add_option("--type", args->type, "A mix of types or one type: " + names);
  CLI::Option* const bpw = app.add_option("--target-bpw", args->target_bpw,
                                          "At most X bits per weight: each tensor gets the type that serves the model "
                                          "best, as measured");
  CLI::Option* const size =
      app.add_option("--target-size", args->target_size, "The same for the file's size: 3.5G, 700M");
  CLI::Option* const kl = app.add_option("--max-kl", args->max_kl,
                                         "The smallest file with at most this mean KL divergence from the original");
  bpw->check(positive)->excludes(type);
  size->excludes(type)->excludes(bpw);
  kl->check(positive)->excludes(type)->excludes(bpw)->excludes(size);
  app.add_option("--imatrix", args->imatrix,
                 "Importance matrix (GGUF or .dat): weighs errors by what activations matter");
  app.add_option("--calibration", args->calibration,
                 "Text like that the model will work on; may be repeated. Targets are measured with it, and importance "
                 "if there is no --imatrix")
      ->expected(1)
      ->take_all();
  app.add_flag("--pure", args->pure, "Every matrix in the mix's main type");
  app.add_option("--tensor-type", args->tensor_types,
                 "REGEX=TYPE: tensors whose name matches get that type; may be repeated, the first match decides")
      ->expected(1)
      ->take_all();
  app.add_option(
         "--method", args->method,
         "How weights are rounded: rtn (to the nearest, fastest), search (for the scales with the least error), "
         "greedy (codes too), gptq (each column makes up for the errors before it; needs --calibration), awq (scales "
         "moved between layers first; needs --calibration)")
      ->check(CLI::IsMember({"rtn", "search", "greedy", "gptq", "awq"}))
      ->capture_default_str();
  app.add_option("--memory", args->memory,
                 "gptq: memory for activations' second moments, such as 1G; a model that needs more takes several "
                 "passes over the text; default: 4G");
  app.add_flag("--rotate", args->rotate, "Rotate the residual stream and the values of heads first: spreads outliers");
  app.add_option("--ctx", args->ctx, "Tokens of a window of calibration text")
      ->check(CLI::Range(8, 1 << 20))
      ->capture_default_str();
  app.add_option("--windows", args->windows,
                 "At most so many windows, evenly from all calibration text; 0: all of it. Targets are "
                 "measured with 48 of them at most")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  app.add_flag("--allow-requantize", args->allow_requantize,
               "Take a file that is quantized already, although that loses more than starting from the original");
  app.add_flag("--dry-run", args->dry_run, "Show types and sizes, write nothing");
  app.add_option("-t,--threads", args->threads, "Threads to use; default: one per physical core")
      ->check(CLI::Range(1, 4096));
  app.add_flag("--json", args->json, "Describe every tensor on stdout");
  app.footer(
      "Until it is complete the file is called OUT.partial; the same command goes on after an interruption.\n"
      "Examples:\n"
      "  flywheel quantize SmolLM2-135M-Instruct smollm2-q4_k_m.gguf --type Q4_K_M\n"
      "  flywheel quantize model-f16.gguf model.gguf --target-size 3.5G --calibration text.txt\n"
      "  flywheel quantize model-f16.gguf model-q4_0.gguf --type Q4_0 --pure --tensor-type 'attn_v=Q6_K'");
  return [args] { return quantize(*args); };
}

}  // namespace flywheel::cli
