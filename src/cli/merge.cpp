// flywheel merge: models bred from models.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "flywheel/adapt/lineage.hpp"
#include "flywheel/adapt/recipe.hpp"
#include "flywheel/model/convert.hpp"
#include "flywheel/model/open.hpp"
#include "flywheel/version.hpp"

namespace flywheel::cli {
namespace {

struct merge_args {
  std::vector<std::string> paths;  ///< [RECIPE] OUT
  std::string method, base, tokenizer, type, like;
  std::vector<std::string> models, parameters;
  std::optional<std::uint64_t> seed;
  unsigned threads = 0;
  bool dry_run = false, no_digest = false, json = false;

  [[nodiscard]] const std::string& out() const { return paths.back(); }
  [[nodiscard]] bool has_recipe() const { return paths.size() == 2; }
};

std::optional<double> number_in(std::string_view text) {
  double number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

/// "PATH" or "PATH:WEIGHT" as an entry of a recipe's models.
json model_entry(const std::string& text, bool weighted) {
  const std::size_t colon = text.rfind(':');
  std::optional<double> weight;
  if (colon != std::string::npos) weight = number_in(std::string_view(text).substr(colon + 1));
  json entry = {{"model", weight ? text.substr(0, colon) : text}};
  if (weight || weighted) entry["parameters"] = {{"weight", weight.value_or(1)}};
  return entry;
}

/// The options as a recipe: JSON, which is YAML too.
std::string recipe_text(const merge_args& args) {
  if (args.models.empty()) throw usage_error("--model", "is missing: give a recipe, or --method and models");
  if (args.method.empty()) throw usage_error("--method", "is missing; see 'flywheel merge --help'");
  const adapt::merge::method* how = adapt::find_merge_method(args.method);
  const bool weighted = how != nullptr && std::any_of(how->parameters.begin(), how->parameters.end(),
                                                      [](const auto& p) { return p.name == "weight" && p.required; });
  json document;
  for (const std::string& model : args.models) document["models"].push_back(model_entry(model, weighted));
  document["merge_method"] = args.method;
  if (!args.base.empty()) document["base_model"] = args.base;
  for (const std::string& one : args.parameters) {
    const std::size_t equals = one.find('=');
    if (equals == std::string::npos || equals == 0) throw usage_error("-p", "'" + one + "' is not NAME=VALUE");
    const std::string name = one.substr(0, equals), value = one.substr(equals + 1);
    document["parameters"][name] = number_in(value) ? json(*number_in(value)) : json(value);
  }
  if (!args.tokenizer.empty()) document["tokenizer_source"] = args.tokenizer;
  return dump(document);
}

adapt::recipe read_recipe(const merge_args& args) {
  adapt::recipe r;
  if (args.has_recipe()) {
    if (!args.method.empty() || !args.base.empty() || !args.models.empty() || !args.parameters.empty() ||
        !args.tokenizer.empty())
      throw usage_error("RECIPE", "says method, models, base, parameters and tokenizer itself");
    r = adapt::recipe::read(args.paths.front()).value();
  } else {
    r = adapt::recipe::parse(recipe_text(args), "options").value();
  }
  if (!args.type.empty()) {
    const dtype_info* type = find_dtype(args.type);
    if (type == nullptr) throw usage_error("--type", "'" + args.type + "' is not a tensor type");
    r.type = type->type;
  }
  if (args.seed) r.seed = *args.seed;
  return r;
}

/// Where a recipe's path leads, as plan_merge has it.
std::filesystem::path place_of(const std::string& path, const std::filesystem::path& folder) {
  const std::filesystem::path inside = folder / path;
  std::error_code ignored;
  return std::filesystem::path(path).is_relative() && std::filesystem::exists(inside, ignored)
             ? inside
             : std::filesystem::path(path);
}

/// Who the result's parents are: models in the plan's order, then adapters.
adapt::lineage lineage_of(const merge_args& args, const adapt::recipe& r, const std::filesystem::path& folder) {
  adapt::lineage child;
  child.name = r.name.empty() ? std::filesystem::path(args.out()).stem().string() : r.name;
  child.role = "model";
  std::set<std::string> methods, bases;
  for (const adapt::recipe::module& module : r.modules) {
    if (module.base) bases.insert(module.base->path);
    for (const adapt::recipe::slice& slice : module.slices) {
      methods.insert(!slice.method.empty() ? slice.method : !module.method.empty() ? module.method : r.method);
      if (slice.base) bases.insert(slice.base->path);
    }
  }
  if (r.base) bases.insert(r.base->path);
  for (const std::string& method : methods) child.method += (child.method.empty() ? "" : ", ") + method;
  json parameters = {{"recipe", r.text}};
  if (!args.type.empty()) parameters["type"] = args.type;
  child.parameters = dump(parameters);
  child.seed = r.seed;
  child.version = version;
  const auto add = [&](const std::string& path, const char* role) {
    adapt::lineage parent = adapt::read_lineage(place_of(path, folder)).value();
    parent.role = role;
    const bool known = std::any_of(child.parents.begin(), child.parents.end(),
                                   [&](const adapt::lineage& p) { return p.path == parent.path; });
    if (!known) child.parents.push_back(std::move(parent));
  };
  for (const adapt::model_reference& model : r.models()) add(model.path, bases.contains(model.path) ? "base" : "model");
  for (const adapt::model_reference& model : r.models())
    if (!model.adapter.empty()) add(model.adapter, "adapter");
  return child;
}

/// SHA-256 of the parents while they are being merged, so that their pages are read once for both. Until it is known, a
/// digest is a text of its length that nothing else has.
class parent_digests {
 public:
  parent_digests(adapt::lineage& child, const std::stop_token& outer)
      : child_(child), forward_(outer, [this] { stop_.request_stop(); }) {
    std::vector<std::string> paths;
    for (adapt::lineage& parent : child.parents) {
      const std::string number = std::to_string(paths.size());
      parent.sha256 = "f17ee1" + std::string(58 - number.size(), '0') + number;
      paths.push_back(parent.path);
    }
#if defined(FLYWHEEL_SERIAL)
    constexpr auto when = std::launch::deferred;
#else
    constexpr auto when = std::launch::async;
#endif
    found_ =
        std::async(when, [paths = std::move(paths), stop = stop_.get_token()]() -> result<std::vector<std::string>> {
          std::vector<std::string> digests;
          control c;
          c.stop = stop;
          for (const std::string& path : paths) {
            auto digest = adapt::file_digest(path, c);
            if (!digest) return std::move(digest).error();
            digests.push_back(*std::move(digest));
          }
          return digests;
        });
  }
  ~parent_digests() { stop_.request_stop(); }
  parent_digests(const parent_digests&) = delete;
  parent_digests& operator=(const parent_digests&) = delete;

  /// Waits, and says what each text becomes.
  result<std::vector<std::pair<std::string, std::string>>> take() {
    auto digests = found_.get();
    if (!digests) return std::move(digests).error();
    std::vector<std::pair<std::string, std::string>> texts;
    for (std::size_t i = 0; i < digests->size(); ++i) {
      texts.emplace_back(child_.parents[i].sha256, (*digests)[i]);
      child_.parents[i].sha256 = (*digests)[i];
    }
    return texts;
  }

 private:
  adapt::lineage& child_;
  std::stop_source stop_;
  std::stop_callback<std::function<void()>> forward_;
  std::future<result<std::vector<std::string>>> found_;
};

std::uint64_t stored_bytes(const adapt::merge_step& step) {
  return static_cast<std::uint64_t>(step.dims.rows()) * row_bytes(step.type, step.dims.cols());
}

/// "blk.12.attn_q.weight" as "blk.*.attn_q.weight".
std::string kind_of(const std::string& tensor) {
  if (!tensor.starts_with("blk.")) return tensor;
  const std::size_t dot = tensor.find('.', 4);
  return dot == std::string::npos ? tensor : "blk.*" + tensor.substr(dot);
}

std::string short_number(double x) {
  std::string text = decimal(x, 4);
  while (text.ends_with('0')) text.pop_back();
  if (text.ends_with('.')) text.pop_back();
  return text;
}

/// "0.5", or the least and the greatest: "0.2 to 0.8".
struct number_range {
  double least = HUGE_VAL, most = -HUGE_VAL;
  void add(double x) { least = std::min(least, x), most = std::max(most, x); }
  [[nodiscard]] std::string text() const {
    return short_number(least) + (least == most ? "" : " to " + short_number(most));
  }
};

/// Steps of one kind of tensor.
struct step_group {
  std::string kind, method, from;
  std::vector<std::pair<std::string, number_range>> numbers;
  std::string type;
  std::uint64_t steps = 0, bytes = 0;
};

std::string name_of(const adapt::merge_plan& plan, std::size_t model) {
  const std::filesystem::path& path = plan.models[model].path();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

/// What a step's numbers are called: names once for all models, "weight[legal]" for each of several.
std::vector<std::string> number_names(const adapt::merge_plan& plan, const adapt::merge_step& step) {
  std::vector<std::string> names;
  for (const adapt::merge::parameter_info& p : step.how->parameters)
    for (std::size_t i = 0; i < (p.per_model ? step.inputs.size() : 1); ++i)
      names.push_back(std::string(p.name) + (p.per_model ? "[" + name_of(plan, step.inputs[i].model) + "]" : ""));
  return names;
}

std::vector<step_group> group_steps(const adapt::merge_plan& plan) {
  std::vector<step_group> groups;
  std::map<std::string, std::size_t> known;
  for (const adapt::merge_step& step : plan.steps) {
    step_group one;
    one.kind = kind_of(step.name);
    one.method = step.how == nullptr ? "copy" : std::string(step.how->name);
    if (step.base) one.from = name_of(plan, step.base->model) + " <- ";
    for (const auto& input : step.inputs)
      one.from += (&input == step.inputs.data() ? "" : ", ") + name_of(plan, input.model);
    one.type = to_string(step.type);
    const auto [at, is_new] =
        known.try_emplace(one.kind + "|" + one.method + "|" + one.from + "|" + one.type, groups.size());
    if (is_new) {
      if (step.how != nullptr)
        for (std::string& name : number_names(plan, step)) one.numbers.emplace_back(std::move(name), number_range());
      groups.push_back(std::move(one));
    }
    step_group& group = groups[at->second];
    ++group.steps;
    group.bytes += stored_bytes(step);
    for (std::size_t i = 0; i < group.numbers.size() && i < step.parameters.size(); ++i)
      group.numbers[i].second.add(step.parameters[i]);
  }
  return groups;
}

/// The numbers of a group that are not what they are without a recipe.
std::string numbers_text(const adapt::merge::method* how, const step_group& group) {
  std::string text;
  for (const auto& [name, range] : group.numbers) {
    const std::string plain = name.substr(0, name.find('['));
    const auto p = std::find_if(how->parameters.begin(), how->parameters.end(),
                                [&](const auto& one) { return one.name == plain; });
    if (!p->required && range.least == p->fallback && range.most == p->fallback) continue;
    text += (text.empty() ? "" : "; ") + name + " " + range.text();
  }
  return text;
}

struct merge_sizes {
  std::uint64_t bytes = 0, memory = 0;
};

std::string plan_table(const adapt::merge_plan& plan) {
  using enum table::align;
  table shown({{"tensor", left}, {"number", right}, {"method"}, {"from"}, {"numbers"}, {"type"}, {"bytes", right}});
  for (const step_group& group : group_steps(plan))
    shown.row({group.kind, grouped(static_cast<std::int64_t>(group.steps)), group.method, group.from,
               group.method == "copy" ? "" : numbers_text(adapt::find_merge_method(group.method), group), group.type,
               human_bytes(group.bytes)});
  return shown.text(2);
}

json plan_json(const adapt::merge_plan& plan) {
  json steps = json::array();
  for (const adapt::merge_step& step : plan.steps) {
    json inputs = json::array(), numbers = json::object();
    for (const auto& input : step.inputs)
      inputs.push_back({{"model", plan.models[input.model].path().string()}, {"tensor", input.tensor}});
    if (step.how != nullptr) {
      const std::vector<std::string> names = number_names(plan, step);
      for (std::size_t i = 0; i < names.size(); ++i) numbers[names[i]] = step.parameters[i];
    }
    json one = {{"tensor", step.name},
                {"method", step.how == nullptr ? "copy" : std::string(step.how->name)},
                {"type", to_string(step.type)},
                {"inputs", std::move(inputs)},
                {"numbers", std::move(numbers)}};
    if (step.base) one["base"] = plan.models[step.base->model].path().string();
    steps.push_back(std::move(one));
  }
  return steps;
}

json parents_json(const adapt::lineage& child) {
  json all = json::array();
  for (const adapt::lineage& parent : child.parents)
    all.push_back({{"name", parent.name},
                   {"path", parent.path},
                   {"role", parent.role},
                   {"sha256", parent.sha256},
                   {"license", parent.license}});
  return all;
}

/// Types that lost precision before.
std::string quantized_types(const adapt::merge_plan& plan) {
  std::set<std::string> types;
  for (const io::archive& model : plan.models)
    for (const io::tensor_info& tensor : model.tensors())
      if (const dtype_info* facts = info(tensor.type);
          facts != nullptr && (facts->kind == dtype_kind::block || facts->kind == dtype_kind::row))
        types.insert(std::string(facts->name));
  std::string text;
  for (const std::string& type : types) text += (text.empty() ? "" : ", ") + type;
  return text;
}

void say(const std::string& line) { std::fprintf(stderr, "flywheel: %s\n", printable(line).c_str()); }

/// By way of a file, which needs as much room as the folder for a while.
adapt::merge_report merge_into_folder(const merge_args& args, const adapt::merge_plan& plan,
                                      const adapt::merge_options& options) {
  struct passing_file {
    std::string path;
    ~passing_file() {
      std::error_code ignored;
      std::filesystem::remove(path, ignored);
    }
  };
  const std::filesystem::path out(args.out());
  const passing_file merged{(out.has_filename() ? out : out.parent_path()).string() + ".merging.gguf"};
  const adapt::merge_report done = adapt::merge_models(plan, merged.path, options).value();
  folder_options into;
  into.context = options.context;
  into.control = options.control;
  (void)convert_to_folder(io::archive::open(merged.path).value(), args.like, out, into).value();
  return done;
}

int merge(const merge_args& args) {
  adapt::recipe r = read_recipe(args);
  const std::filesystem::path folder =
      args.has_recipe() ? std::filesystem::path(args.paths.front()).parent_path() : std::filesystem::path();
  std::vector<std::string> inputs;
  if (args.has_recipe()) inputs.push_back(args.paths.front());
  for (const adapt::model_reference& model : r.models()) {
    inputs.push_back(place_of(model.path, folder).string());
    if (!model.adapter.empty()) inputs.push_back(place_of(model.adapter, folder).string());
  }
  refuse_overwrite(args.out(), "OUT", inputs);
  refuse_overwrite(args.out() + ".lineage.json", "OUT", inputs);

  const interrupt stop;
  adapt::merge_plan plan = adapt::plan_merge(r, folder).value();
  context_options shared;
  shared.threads = args.threads;
  adapt::merge_options options;
  options.context = context::create(std::move(shared)).value();
  merge_sizes sizes;
  for (const adapt::merge_step& step : plan.steps) sizes.bytes += stored_bytes(step);
  sizes.memory = plan.peak_memory(options.context.executor().concurrency());
  const std::string quantized = quantized_types(plan);
  adapt::lineage child = lineage_of(args, r, folder);
  if (args.dry_run) {
    if (args.json)
      print_line(dump({{"peak_memory", sizes.memory}, {"bytes", sizes.bytes}, {"steps", plan_json(plan)}}));
    else
      print(plan_table(plan) + "  " + grouped(static_cast<std::int64_t>(plan.steps.size())) + " tensors, " +
            human_bytes(sizes.bytes) + "; at most " + human_bytes(sizes.memory) +
            " of memory beside the mapped files; nothing was written\n");
    return success;
  }
  if (!args.json)
    say("merging " + grouped(static_cast<std::int64_t>(plan.models.size())) + " models into " +
        grouped(static_cast<std::int64_t>(plan.steps.size())) + " tensors, " + human_bytes(sizes.bytes) +
        ", with at most " + human_bytes(sizes.memory) + " of memory beside the mapped files");
  if (!quantized.empty() && !args.json)
    say("note: there are quantized inputs (" + quantized + "); what their rounding lost stays lost");

  std::optional<parent_digests> digests;
  if (!args.no_digest) digests.emplace(child, stop.token());
  plan.metadata.set("general.name", child.name);
  adapt::add_lineage(plan.metadata, child);
  progress_bar bar("merging");
  options.control = {bar.callback(), stop.token()};
  if (digests) options.amend = [&] { return digests->take(); };
  const adapt::merge_report done = args.like.empty() ? adapt::merge_models(plan, args.out(), options).value()
                                                     : merge_into_folder(args, plan, options);
  bar.clear();
  adapt::write_lineage(child, args.out()).value();
  if (args.json)
    print_line(dump({{"file", args.out()},
                     {"method", child.method},
                     {"tensors", done.tensors},
                     {"copied", done.copied},
                     {"bytes", done.bytes},
                     {"bytes_read", done.bytes_read},
                     {"peak_memory", sizes.memory},
                     {"seconds", done.seconds},
                     {"file_bytes", open_model_archive(args.out()).value().file_bytes()},
                     {"parents", parents_json(child)}}));
  else
    print_line(printable(args.out()) + ": " + child.method + " of " +
               grouped(static_cast<std::int64_t>(child.parents.size())) + " models, " +
               grouped(static_cast<std::int64_t>(done.tensors)) + " tensors, " + human_bytes(done.bytes) + ", " +
               decimal(done.seconds, 1) + " s");
  return success;
}

}  // namespace

action merge_command(CLI::App& app) {
  auto args = std::make_shared<merge_args>();
  std::string methods;
  for (const adapt::merge::method* how : adapt::merge_methods())
    methods += (methods.empty() ? "" : ", ") + std::string(how->name);
  app.add_option(
         "FILES", args->paths,
         "[RECIPE] OUT: a recipe (mergekit's YAML; paths in it start at its folder), unless options say what to "
         "merge; and the file to write: GGUF, or safetensors if the name ends with .safetensors")
      ->required()
      ->expected(1, 2)
      ->type_name("[RECIPE] OUT");
  app.add_option("--method", args->method, "Instead of a recipe: " + methods);
  app.add_option("--model", args->models, "Instead of a recipe: PATH, PATH:WEIGHT, PATH+ADAPTER; may be repeated")
      ->allow_extra_args(false);
  app.add_option("--base", args->base, "Instead of a recipe: the model that the others were made from");
  app.add_option("-p,--parameter", args->parameters,
                 "Instead of a recipe: NAME=VALUE, such as density=0.5; may be repeated")
      ->allow_extra_args(false);
  app.add_option("--tokenizer", args->tokenizer, "Instead of a recipe: base, union, or the model with the vocabulary");
  app.add_option("--type", args->type,
                 "Type of matrices: f32, f16, bf16, q8_0, ...; default: the recipe's, else the first model's");
  app.add_option("--like", args->like,
                 "Make OUT a Hugging Face folder, with the configuration and the tokenizer of this one");
  app.add_option("--seed", args->seed, "Seed of random masks; default: the recipe's, else 0")
      ->check(CLI::NonNegativeNumber);
  app.add_option("-t,--threads", args->threads, "Threads to use; default: one per physical core")
      ->check(CLI::Range(1, 4096));
  app.add_flag("--dry-run,--plan", args->dry_run, "Show what would be merged how, and how much memory it takes");
  app.add_flag("--no-digest", args->no_digest, "Do not record the SHA-256 of the parents");
  app.add_flag("--json", args->json, "Describe what was written, or the plan, on stdout");
  app.footer(
      "The result says who its parents are; OUT.lineage.json says the same ('flywheel lineage OUT').\n"
      "Examples:\n"
      "  flywheel merge recipe.yml merged.gguf\n"
      "  flywheel merge --method linear --model a.gguf:0.7 --model b.gguf:0.3 merged.gguf\n"
      "  flywheel merge --method ties --base base.gguf --model a.gguf --model b.gguf -p density=0.5 merged.gguf\n"
      "  flywheel merge recipe.yml merged.gguf --plan\n"
      "  flywheel merge recipe.yml merged --like legal");
  return [args] { return merge(*args); };
}

}  // namespace flywheel::cli
