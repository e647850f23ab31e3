// flywheel evolve: the numbers of a merge recipe, searched for.
#include "flywheel/adapt/evolve.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/descent.hpp"
#include "cli/evolve_plot.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "flywheel/adapt/merge_models.hpp"

namespace flywheel::cli {
namespace {

using adapt::evaluation;
using adapt::objective;

struct evolve_args {
  std::string recipe, out, objective = "least-gain", plot;
  std::vector<std::string> texts, tests, parameters, methods;
  std::size_t trial = 0;
  adapt::evolve_options search;
  model_args loading;
  bool restart = false, json = false;
};

/// A number that is all of `text`.
std::optional<double> whole_number(std::string_view text) {
  double number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

/// "FILE" or "FILE:WEIGHT".
adapt::scored_text read_text(const std::string& given) {
  const std::size_t colon = given.rfind(':');
  const auto weight =
      colon == std::string::npos ? std::nullopt : whole_number(std::string_view(given).substr(colon + 1));
  adapt::scored_text t;
  t.name = weight ? given.substr(0, colon) : given;
  t.text = read_file(t.name);
  t.weight = weight.value_or(1);
  if (!(t.weight >= 0)) throw usage_error("--text", "the weight of '" + given + "' must be at least 0");
  return t;
}

/// "NAME" or "NAME:LEAST:MOST".
adapt::evolved_parameter parse_parameter(const std::string& given) {
  adapt::evolved_parameter p;
  const std::size_t first = given.find(':'), second = given.find(':', first + 1);
  p.name = given.substr(0, first);
  if (first == std::string::npos) return p;
  const auto least = whole_number(given.substr(first + 1, second - first - 1));
  const auto most = second == std::string::npos ? std::nullopt : whole_number(given.substr(second + 1));
  if (!least || !most) throw usage_error("--parameter", "'" + given + "' is not NAME or NAME:LEAST:MOST");
  p.least = *least;
  p.most = *most;
  return p;
}

objective objective_of(const std::string& name) {
  for (const objective o : {objective::perplexity, objective::mean_gain, objective::least_gain})
    if (to_string(o) == name) return o;
  return objective::least_gain;
}

/// Files in folders of one kind: by the folder, "legal/eval.txt"; else by the file.
std::string short_name(const std::string& path) {
  const std::filesystem::path p(path);
  std::string parent = p.parent_path().filename().string(), file = p.stem().string();
  for (const char* common : {"eval", "calibration", "test", "train"})
    if (file == common && !parent.empty()) return parent;
  for (const char* common : {"hf", "gguf"})
    if (parent == common || file == common) {
      const std::filesystem::path above = file == common ? p.parent_path() : p.parent_path().parent_path();
      return above.filename().string();
    }
  return file;
}

/// Larger is better: the gain kept, or minus the log-perplexity.
std::vector<double> figures_of(objective what, const std::vector<evaluation>& parents, const evaluation& e) {
  if (what != objective::perplexity) return adapt::gains_kept(parents, e);
  std::vector<double> all;
  for (std::size_t i = 0; i < e.nll.size(); ++i) all.push_back(parents[0].nll[i] - e.nll[i]);
  return all;
}

/// The lineage of the result, without its parents.
adapt::lineage lineage_of(const evolve_args& args, const adapt::recipe& best) {
  adapt::lineage l;
  l.method = best.method;
  l.parameters = json{
      {"evolve",
       {{"objective", args.objective},
        {"generations", args.search.generations},
        {"groups", args.search.groups},
        {"windows", args.search.windows}}},
      {"recipe",
       best.text}}.dump(-1, ' ', false, json::error_handler_t::replace);
  l.seed = args.search.seed;
  return l;
}

struct evolve_report {
  adapt::evolution found;
  std::string method;
  std::vector<evaluation> finals;  ///< On the tests: parents, the recipe as given, the best.
  std::vector<adapt::scored_text> texts, tests;
};

table generations_table(const evolve_report& r, objective what) {
  using enum table::align;
  table rows({{"generation", right}, {"best", right}, {"mean", right}, {"best so far", right}});
  const std::vector<evaluation>& all = r.found.history;
  const double sign = what == objective::perplexity ? 1 : -1;
  double so_far = HUGE_VAL;
  for (std::size_t g = 0; (g + 1) * r.found.population <= all.size(); ++g) {
    double best = HUGE_VAL, sum = 0, counted = 0;
    for (std::size_t i = g * r.found.population; i < (g + 1) * r.found.population; ++i)
      if (!std::isnan(all[i].value)) best = std::min(best, all[i].value), sum += all[i].value, ++counted;
    so_far = std::min(so_far, best);
    const auto shown = [&](double v) { return std::isfinite(v) ? decimal(sign * v, 4) : std::string("-"); };
    rows.row({std::to_string(g + 1), shown(best), counted > 0 ? shown(sum / counted) : "-", shown(so_far)});
  }
  return rows;
}

/// Perplexities, and the gains kept where there are some.
table models_table(const std::vector<adapt::scored_text>& texts, const std::vector<evaluation>& parents,
                   const std::vector<evaluation>& all) {
  using enum table::align;
  table rows({{"model"},
              {texts.size() > 0 ? short_name(texts[0].name) : "", right},
              {texts.size() > 1 ? short_name(texts[1].name) : "", right},
              {texts.size() > 2 ? short_name(texts[2].name) : "", right},
              {texts.size() > 3 ? short_name(texts[3].name) : "", right},
              {texts.size() > 4 ? short_name(texts[4].name) : "", right},
              {texts.size() > 5 ? short_name(texts[5].name) : "", right}});
  for (const evaluation& e : all) {
    std::vector<std::string> cells = {e.name};
    const std::vector<double> gains = adapt::gains_kept(parents, e);
    for (std::size_t i = 0; i < e.nll.size(); ++i)
      cells.push_back(decimal(std::exp(e.nll[i]), 3) +
                      (std::isnan(gains[i]) ? "" : " (" + decimal(100 * gains[i], 0) + "%)"));
    rows.row(std::move(cells));
  }
  return rows;
}

void draw(const evolve_args& args, const evolve_report& r, output_file& file) {
  const objective what = args.search.objective;
  evolve_drawing d;
  const bool gains = what != objective::perplexity;
  d.title = "Search over " + r.method + ": " + grouped(static_cast<std::int64_t>(r.found.numbers)) + " numbers, " +
            grouped(static_cast<std::int64_t>(r.found.history.size())) + " candidates";
  d.subtitle = "CMA-ES, objective " + args.objective + ", " + std::to_string(r.found.population) +
               " candidates a generation, " + std::to_string(args.search.windows) + " windows of each text";
  d.figure = gains ? "share of the best parent's gain over the base that is kept"
                   : "log-perplexity less than the " + std::string("first parent's, nats");
  d.population = r.found.population;
  const auto value_of = [&](const evaluation& e) {
    if (gains) return -e.value;
    double sum = 0, weights = 0;
    const std::vector<double> each = figures_of(what, r.found.parents, e);
    for (std::size_t i = 0; i < each.size(); ++i) sum += r.texts[i].weight * each[i], weights += r.texts[i].weight;
    return sum / weights;
  };
  for (const evaluation& e : r.found.history) {
    d.values.push_back(value_of(e));
    d.text_figures.push_back(figures_of(what, r.found.parents, e));
  }
  d.start = value_of(r.found.start);
  for (const adapt::scored_text& t : r.texts) d.texts.push_back(short_name(t.name));
  const bool tested = !r.tests.empty();
  std::vector<evaluation> finals = r.finals;
  if (!tested) {
    finals = r.found.parents;
    finals.push_back(r.found.start);
    finals.push_back(r.found.best_found);
  }
  d.final_note = tested ? "on texts that were not searched on" : "on the texts that were searched on";
  const std::size_t n_parents = r.found.parents.size();
  const std::vector<evaluation> parents(finals.begin(), finals.begin() + static_cast<std::ptrdiff_t>(n_parents));
  for (const adapt::scored_text& t : tested ? r.tests : r.texts) d.tests.push_back(short_name(t.name));
  for (std::size_t i = 0; i < finals.size(); ++i)
    d.rows.push_back({i < n_parents           ? short_name(finals[i].name)
                      : i + 1 < finals.size() ? "recipe as given"
                                              : "evolved",
                      figures_of(what, parents, finals[i]), i < n_parents});
  const std::string svg = evolve_svg(d);
  file.write(std::as_bytes(std::span(svg)));
  file.finish();
}

json described(const evaluation& e) { return {{"name", e.name}, {"nll", e.nll}, {"value", e.value}}; }

json described(const evolve_args& args, const evolve_report& r) {
  json history = json::array(), parents = json::array(), finals = json::array();
  for (const evaluation& e : r.found.history) history.push_back({{"nll", e.nll}, {"value", e.value}});
  for (const evaluation& e : r.found.parents) parents.push_back(described(e));
  for (const evaluation& e : r.finals) {
    json one = described(e);
    one["gains"] = adapt::gains_kept(std::span(r.finals).first(r.found.parents.size()), e);
    finals.push_back(std::move(one));
  }
  json texts = json::array(), tests = json::array();
  for (const adapt::scored_text& t : r.texts) texts.push_back({{"name", t.name}, {"weight", t.weight}});
  for (const adapt::scored_text& t : r.tests) tests.push_back(t.name);
  return {{"file", args.out},
          {"method", r.method},
          {"objective", args.objective},
          {"numbers", r.found.numbers},
          {"population", r.found.population},
          {"resumed", r.found.resumed},
          {"texts", texts},
          {"tests", tests},
          {"parents", parents},
          {"start", described(r.found.start)},
          {"best", described(r.found.best_found)},
          {"finals", finals},
          {"history", history},
          {"recipe", r.found.best.text}};
}

/// A short search with each method; the best goes on. Returns its recipe.
adapt::recipe choose_method(const evolve_args& args, const adapt::recipe& what, const std::filesystem::path& folder,
                            const std::vector<adapt::scored_text>& texts, const interrupt& stop, bool quiet) {
  adapt::recipe chosen = what;
  double best = HUGE_VAL;
  for (const std::string& method : args.methods) {
    progress_bar bar(method);
    adapt::evolve_options o = args.search;
    o.generations = args.trial;
    o.state = args.out + ".evolve." + method + ".json";
    o.control = {bar.callback(), stop.token()};
    const adapt::recipe trial = adapt::with_method(what, method).value();
    const adapt::evolution found = adapt::evolve(trial, folder, texts, o).value();
    bar.clear();
    const double sign = o.objective == objective::perplexity ? 1 : -1;
    if (!quiet) print_line(method + ": " + decimal(sign * found.best_found.value, 4));
    if (!(found.best_found.value < best)) continue;
    best = found.best_found.value;
    chosen = trial;
  }
  return chosen;
}

int search_recipe(evolve_args& args) {
  const interrupt stop;
  std::vector<std::string> inputs = {args.recipe};
  evolve_report r;
  for (const std::string& t : args.texts) r.texts.push_back(read_text(t));
  for (const std::string& t : args.tests) {
    r.tests.push_back(read_text(t));
    r.tests.back().weight = 1;
  }
  for (const auto* list : {&r.texts, &r.tests})
    for (const adapt::scored_text& t : *list) inputs.push_back(t.name);
  const std::filesystem::path folder = std::filesystem::path(args.recipe).parent_path();
  adapt::recipe what = adapt::recipe::read(args.recipe).value();
  for (const std::string& file : files_of(parents_of(what), folder)) inputs.push_back(file);
  const std::string yaml_path = args.out + ".yaml", state = args.out + ".evolve.json";
  for (const std::string& out : {args.out, yaml_path, state}) refuse_overwrite(out, "OUT", inputs);
  std::optional<output_file> plot;
  if (!args.plot.empty()) {
    refuse_overwrite(args.plot, "--plot", inputs);
    plot.emplace(args.plot, "--plot");
  }
  for (const std::string& p : args.parameters) args.search.parameters.push_back(parse_parameter(p));
  args.search.objective = objective_of(args.objective);
  args.search.context = args.loading.make_context();
  if (args.trial == 0) args.trial = std::max<std::size_t>(1, args.search.generations / 4);
  if (args.restart) {
    std::error_code ignored;
    std::filesystem::remove(state, ignored);
    for (const std::string& m : args.methods) std::filesystem::remove(args.out + ".evolve." + m + ".json", ignored);
  }
  if (!args.methods.empty()) what = choose_method(args, what, folder, r.texts, stop, args.json);
  r.method = what.method.empty() ? "a recipe" : what.method;

  {
    progress_bar bar("evolve");
    adapt::evolve_options o = args.search;
    // A method that was chosen goes on from its trial.
    o.state = args.methods.empty() ? state : args.out + ".evolve." + what.method + ".json";
    const double sign = o.objective == objective::perplexity ? 1 : -1;
    double best = HUGE_VAL;
    o.each = [&](std::size_t, std::span<const evaluation> all) {
      for (const evaluation& e : all)
        if (e.value < best) best = e.value;
    };
    o.control.stop = stop.token();
    o.control.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view generation) {
      bar.update(done, total,
                 std::string(generation) + (std::isfinite(best) ? ", best " + decimal(sign * best, 4) : std::string()));
    };
    r.found = adapt::evolve(what, folder, r.texts, o).value();
  }

  std::filesystem::path to = std::filesystem::path(args.out).parent_path();
  const std::string yaml = adapt::to_yaml(r.found.best, folder, to);
  {
    progress_bar bar("merge");
    adapt::merge_plan plan = adapt::plan_merge(r.found.best, folder).value();
    adapt::lineage made = lineage_of(args, r.found.best);
    describe_descent(made, args.out, parents_of(r.found.best), folder, stop);
    adapt::add_lineage(plan.metadata, made);
    (void)adapt::merge_models(plan, args.out, {args.search.context, {bar.callback(), stop.token()}}).value();
    adapt::write_lineage(made, args.out).value();
    output_file file(yaml_path, "OUT");
    file.write(std::as_bytes(std::span(yaml)));
    file.finish();
  }
  if (!r.tests.empty()) {
    progress_bar bar("final figures");
    adapt::evolve_options o = args.search;
    o.windows = 0;
    o.control = {{}, stop.token()};
    const adapt::recipe both[] = {what, r.found.best};
    r.finals = adapt::evaluate_recipes(both, folder, r.tests, o).value();
  }
  const std::size_t n_parents = r.found.parents.size();
  if (!r.finals.empty()) r.finals[n_parents].name = "recipe as given", r.finals.back().name = "evolved";
  if (plot) draw(args, r, *plot);
  if (args.json) {
    print_line(dump(described(args, r)));
    return success;
  }
  print(generations_table(r, args.search.objective).text());
  std::vector<evaluation> searched = r.found.parents;
  searched.push_back(r.found.start);
  searched.back().name = "recipe as given";
  searched.push_back(r.found.best_found);
  searched.back().name = "evolved";
  print_line("\non the texts that were searched on (share of the best parent's gain):");
  print(models_table(r.texts, r.found.parents, searched).text());
  if (!r.finals.empty()) {
    print_line("\non the other texts:");
    print(models_table(r.tests, {r.finals.begin(), r.finals.begin() + static_cast<std::ptrdiff_t>(n_parents)}, r.finals)
              .text());
  }
  print_line("\nwritten: " + printable(args.out) + ", " + printable(yaml_path) + " (a recipe)");
  return success;
}

}  // namespace

action evolve_command(CLI::App& app) {
  auto args = std::make_shared<evolve_args>();
  app.add_option("RECIPE", args->recipe, "Merge recipe to begin with")->required();
  app.add_option("OUT", args->out, "Model to write; its recipe becomes OUT.yaml, the search's state OUT.evolve.json")
      ->required();
  app.add_option("--text", args->texts, "FILE[:WEIGHT] with text to score candidates on; may be repeated")
      ->required()
      ->expected(1)
      ->take_all();
  app.add_option("--test", args->tests, "File with other text, all of which gives the final figures; may be repeated")
      ->expected(1)
      ->take_all();
  app.add_option("--objective", args->objective,
                 "perplexity (weighted mean of its logarithm); or of the gains of the best parent over the base that "
                 "are kept on each text, mean-gain or least-gain")
      ->check(CLI::IsMember({"perplexity", "mean-gain", "least-gain"}))
      ->capture_default_str();
  app.add_option("--parameter", args->parameters,
                 "NAME[:LEAST:MOST] to search over; may be repeated; default: weight, density, t, select_topk")
      ->expected(1)
      ->take_all();
  app.add_option("--methods", args->methods, "Methods to try shortly first, separated by commas; the best goes on")
      ->delimiter(',');
  app.add_option("--trial", args->trial, "Generations of such a trial; default: a quarter");
  app.add_option("--generations", args->search.generations, "Generations in all")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--population", args->search.population, "Candidates of a generation; default: 4 + 3 ln(numbers)");
  app.add_option("--groups", args->search.groups, "Groups of consecutive layers with numbers of their own")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_flag("--parts", args->search.parts, "Attention, feed-forward and norms of a group apart");
  app.add_option("--step", args->search.step, "First standard deviation, in widths of the bounds")
      ->capture_default_str();
  app.add_option("--seed", args->search.seed, "Of the search")->capture_default_str();
  app.add_option("--windows", args->search.windows, "Windows of each text, evenly from all of it; 0: all")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  app.add_option("--ctx", args->search.ctx, "Positions of a window")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  app.add_option("--plot", args->plot, "SVG file to draw the search into");
  app.add_flag("--restart", args->restart, "Begin again, also where the state of an interrupted search is there");
  args->loading.declare_options(app);
  app.add_flag("--json", args->json, "Print one JSON object");
  app.footer(
      "Candidates are merged in memory. An interrupted search goes on where it stopped when the same command is given\n"
      "again, with the same result; with more generations a finished one goes on.\n"
      "\nExamples:\n"
      "  flywheel evolve ties.yaml out.gguf --text law.txt --text code.txt:2 --test other.txt --plot search.svg\n"
      "  flywheel evolve linear.yaml out.gguf --text law.txt --objective perplexity --parameter weight:0:1\n"
      "  flywheel evolve ties.yaml out.gguf --text law.txt --methods ties,dare_linear,breadcrumbs --generations 40");
  return [args] { return search_recipe(*args); };
}

}  // namespace flywheel::cli
