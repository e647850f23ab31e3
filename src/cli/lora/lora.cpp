#include "cli/lora/lora.hpp"

#include <cmath>
#include <filesystem>
#include <map>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "flywheel/adapt/adapters.hpp"
#include "flywheel/adapt/lineage.hpp"
#include "flywheel/model/adapter_archive.hpp"
#include "flywheel/model/open.hpp"
#include "flywheel/version.hpp"

namespace flywheel::cli {
namespace {

std::vector<adapt::scaled_adapter> open_adapters(const lora_args& args, const io::archive& base, float sign) {
  std::vector<adapt::scaled_adapter> all;
  for (const std::string& text : args.adapters) {
    const auto [path, scale] = split_scale(text);
    all.push_back({open_adapter_archive(path, base).value(), sign * scale});
  }
  return all;
}

/// The base, and the paths of the adapters.
std::vector<std::string> inputs_of(const lora_args& args) {
  std::vector<std::string> all = {args.base};
  for (const std::string& text : args.adapters) all.push_back(split_scale(text).first);
  return all;
}

/// Of an adapter; before the work, not behind it.
void check_out(const std::string& out, const std::vector<std::string>& inputs) {
  refuse_overwrite(out, "OUT", inputs);
  std::error_code ignored;
  if (!out.ends_with(".gguf") && std::filesystem::exists(out, ignored) && !std::filesystem::is_empty(out, ignored))
    throw usage_error("OUT", "'" + out + "' is there already; a PEFT folder needs a name that is free");
}

/// Where the output comes from: inputs[0] is the base, the others are of `role`.
adapt::lineage lineage_of(const std::string& method, const std::string& name, const std::vector<std::string>& inputs,
                          const char* role, const json& parameters, std::uint64_t seed, const interrupt& stop) {
  adapt::lineage child;
  child.name = name;
  child.role = method == "lora merge" || method == "lora unmerge" ? "model" : "adapter";
  child.method = method;
  child.parameters = dump(parameters);
  child.seed = seed;
  child.version = std::string(version);
  for (const std::string& input : inputs) {
    progress_bar bar("reading " + input);
    child.parents.push_back(
        adapt::describe_parent(input, child.parents.empty() ? "base" : role, {bar.callback(), stop.token()}).value());
  }
  return child;
}

std::string name_of(const io::archive& file) {
  const auto name = file.metadata().string("general.name");
  return name && !name->empty() ? std::string(*name) : file.path().stem().string();
}

void write_with_lineage(const lora_args& args, const io::archive& adapter, const io::archive& base,
                        const adapt::lineage& line) {
  write_adapter(adapt::with_lineage(adapter, line).value(), base, args.out).value();
  adapt::write_lineage(line, args.out).value();
}

context context_of(const lora_args& args) {
  context_options shared;
  shared.threads = args.threads;
  return context::create(std::move(shared)).value();
}

std::optional<dtype> type_of(const std::string& name) {
  if (name.empty()) return std::nullopt;
  const dtype_info* type = find_dtype(name);
  if (type == nullptr) throw usage_error("--type", "'" + name + "' is not a tensor type");
  return type->type;
}

std::string_view kind_of(const adapter_change& c) {
  if (c.what == adapter_change::kind::replace) return "replaced";
  if (c.what == adapter_change::kind::embedding) return "embedding";
  return c.head ? "head" : c.magnitude.empty() ? "product" : "product, DoRA";
}

/// "blk.3.attn_q.weight" -> "attn_q.weight"
std::string group_of(const std::string& weight) {
  return weight.starts_with("blk.") ? weight.substr(weight.find('.', 4) + 1) : weight;
}

void show_made(const lora_args& args, const adapt::extracted_adapter& made) {
  if (args.json) {
    json tensors = json::array();
    for (const adapt::extracted_tensor& t : made.tensors)
      tensors.push_back({{"name", t.name}, {"rank", t.rank}, {"norm", t.norm}, {"error", t.error}});
    print_line(dump({{"file", args.out}, {"error", made.error}, {"tensors", tensors}, {"left_out", made.left_out}}));
    return;
  }
  struct sum {
    std::int64_t tensors = 0, rank = 0;
    double squares = 0, errors = 0;
  };
  std::map<std::string, sum> groups;
  for (const adapt::extracted_tensor& t : made.tensors) {
    sum& s = groups[group_of(t.name)];
    ++s.tensors;
    s.rank = std::max(s.rank, t.rank);
    s.squares += t.norm * t.norm;
    s.errors += t.error * t.error * t.norm * t.norm;
  }
  using enum table::align;
  table shown({{"tensors", left}, {"number", right}, {"rank", right}, {"norm", right}, {"error", right}});
  for (const auto& [name, s] : groups)
    shown.row({name, grouped(s.tensors), grouped(s.rank), decimal(std::sqrt(s.squares), 4),
               decimal(s.squares > 0 ? std::sqrt(s.errors / s.squares) : 0, 4)});
  print(shown.text(2));
  print_line("  error over all: " + decimal(made.error, 4) + " of the change's norm");
  if (!made.left_out.empty())
    print_line("  left out, though they differ: " + grouped(static_cast<std::int64_t>(made.left_out.size())) +
               " tensors, such as " + printable(made.left_out.front()));
}

}  // namespace

int lora_info(const lora_args& args) {
  const io::archive base = open_model_archive(args.base).value();
  const io::archive file = open_adapter_archive(args.input, base).value();
  const std::vector<adapter_change> changes = adapter_changes(file, base).value();
  const std::string name = name_of(file);
  const auto alpha = file.metadata().number("adapter.lora.alpha");
  std::uint64_t bytes = 0;
  for (const io::tensor_info& t : file.tensors()) bytes += t.bytes;
  if (args.json) {
    json list = json::array();
    for (const adapter_change& c : changes)
      list.push_back({{"weight", c.weight}, {"kind", kind_of(c)}, {"rank", c.rank}, {"factor", c.factor}});
    print_line(dump({{"name", name}, {"alpha", alpha ? *alpha : 0}, {"tensor_bytes", bytes}, {"changes", list}}));
    return success;
  }
  struct sum {
    std::int64_t tensors = 0, least = 0, most = 0;
    double factor = 0;
  };
  std::map<std::pair<std::string, std::string>, sum> groups;
  for (const adapter_change& c : changes) {
    sum& s = groups[{group_of(c.head ? "output.weight" : c.weight), std::string(kind_of(c))}];
    s.least = s.tensors == 0 ? c.rank : std::min(s.least, c.rank);
    s.most = std::max(s.most, c.rank);
    s.factor = c.factor;
    ++s.tensors;
  }
  print_line(bold(printable(name)) + ": alpha " + decimal(alpha ? *alpha : 0, 3) + ", " + human_bytes(bytes));
  using enum table::align;
  table shown({{"changes", left}, {"how"}, {"number", right}, {"rank", right}, {"alpha / rank", right}});
  for (const auto& [key, s] : groups)
    shown.row({key.first, key.second, grouped(s.tensors),
               s.least == s.most ? grouped(s.most) : grouped(s.least) + " to " + grouped(s.most),
               s.least == s.most && s.most > 0 ? decimal(s.factor, 4) : ""});
  print(shown.text(2));
  return success;
}

int lora_convert(const lora_args& args) {
  check_out(args.out, {args.base, args.input});
  const interrupt stop;
  const io::archive base = open_model_archive(args.base).value();
  const io::archive file = open_adapter_archive(args.input, base).value();
  write_with_lineage(
      args, file, base,
      lineage_of("lora convert", name_of(file), {args.base, args.input}, "adapter", json::object(), 0, stop));
  if (args.json)
    print_line(dump({{"file", args.out}, {"tensors", file.tensors().size()}}));
  else
    print_line(printable(args.out) + ": " + grouped(static_cast<std::int64_t>(file.tensors().size())) + " tensors");
  return success;
}

int lora_merge(const lora_args& args, bool unmerge) {
  refuse_overwrite(args.out, "OUT", inputs_of(args));
  adapt::merge_adapters_options options;
  options.type = type_of(args.type);
  options.search = args.method == "search";
  const interrupt stop;
  const io::archive base = open_model_archive(args.base).value();
  const std::vector<adapt::scaled_adapter> adapters = open_adapters(args, base, unmerge ? -1.0F : 1.0F);
  if (unmerge)
    for (const adapt::scaled_adapter& use : adapters)
      for (const io::tensor_info& t : use.adapter.tensors())
        if (!t.name.ends_with(".lora_a") && !t.name.ends_with(".lora_b"))
          fail(errc::unsupported, use.adapter.path().string() + ": tensor " + t.name,
               "DoRA and replaced tensors cannot be taken out, because the merged weights do not say what was before");
  json scales = json::array();
  for (const adapt::scaled_adapter& use : adapters) scales.push_back(use.scale);
  const adapt::lineage line = lineage_of(unmerge ? "lora unmerge" : "lora merge",
                                         std::filesystem::path(args.out).stem().string(), inputs_of(args), "adapter",
                                         {{"scales", scales}, {"type", args.type}, {"method", args.method}}, 0, stop);
  progress_bar bar(unmerge ? "unmerging" : "merging");
  options.control = {bar.callback(), stop.token()};
  options.context = context_of(args);
  options.lineage = line;
  const auto written = adapt::merge_adapters(base, adapters, args.out, options);
  if (!written && written.error().where == "type") throw usage_error("--type", written.error().message);
  const adapt::merged_adapters done = written.value();
  bar.clear();
  adapt::write_lineage(line, args.out).value();
  if (args.json)
    print_line(dump({{"file", args.out},
                     {"tensors", done.tensors},
                     {"changed", done.changed},
                     {"tensor_bytes", done.bytes},
                     {"file_bytes", std::filesystem::file_size(args.out)}}));
  else
    print_line(printable(args.out) + ": " + grouped(static_cast<std::int64_t>(done.changed)) + " of " +
               grouped(static_cast<std::int64_t>(done.tensors)) + " tensors changed, " + human_bytes(done.bytes));
  return success;
}

int lora_extract(const lora_args& args) {
  check_out(args.out, {args.base, args.input});
  adapt::extract_options options;
  options.rank = args.rank;
  options.energy = args.energy;
  options.type = *type_of(args.type);
  options.pattern = args.pattern;
  options.embeddings = args.embeddings;
  options.seed = args.seed;
  const interrupt stop;
  const io::archive base = open_model_archive(args.base).value(), tuned = open_model_archive(args.input).value();
  progress_bar bar("extracting from " + args.input);
  options.control = {bar.callback(), stop.token()};
  options.context = context_of(args);
  const adapt::extracted_adapter made = adapt::extract_adapter(base, tuned, options).value();
  bar.clear();
  json parameters = {{"rank", args.rank}, {"type", args.type}, {"embeddings", args.embeddings}};
  if (args.energy) parameters["energy"] = *args.energy;
  if (!args.pattern.empty()) parameters["tensors"] = args.pattern;
  write_with_lineage(
      args, made.adapter, base,
      lineage_of("lora extract", name_of(made.adapter), {args.base, args.input}, "model", parameters, args.seed, stop));
  show_made(args, made);
  return success;
}

int lora_combine(const lora_args& args) {
  check_out(args.out, inputs_of(args));
  using adapt::combination;
  const std::map<std::string, combination> ways = {{"concatenate", combination::concatenate},
                                                   {"linear", combination::linear},
                                                   {"svd", combination::svd},
                                                   {"ties", combination::ties},
                                                   {"dare_linear", combination::dare_linear},
                                                   {"dare_ties", combination::dare_ties}};
  adapt::combine_options options;
  options.how = ways.at(args.how);
  options.rank = args.rank;
  options.density = args.density;
  options.type = *type_of(args.type);
  options.seed = args.seed;
  options.name = args.name.empty() ? std::filesystem::path(args.out).stem().string() : args.name;
  const interrupt stop;
  const io::archive base = open_model_archive(args.base).value();
  const std::vector<adapt::scaled_adapter> adapters = open_adapters(args, base, 1);
  progress_bar bar("combining");
  options.control = {bar.callback(), stop.token()};
  options.context = context_of(args);
  const adapt::extracted_adapter made = adapt::combine_adapters(base, adapters, options).value();
  bar.clear();
  json scales = json::array();
  for (const adapt::scaled_adapter& use : adapters) scales.push_back(use.scale);
  write_with_lineage(
      args, made.adapter, base,
      lineage_of(
          "lora combine", options.name, inputs_of(args), "adapter",
          {{"scales", scales}, {"how", args.how}, {"rank", args.rank}, {"density", args.density}, {"type", args.type}},
          args.seed, stop));
  show_made(args, made);
  return success;
}

}  // namespace flywheel::cli
