// adapters/: logits and greedy continuations of a base that runs with adapters, which stay beside its weights; and the
// weights of the base with adapters merged into them.
#include <cmath>
#include <map>
#include <numeric>

#include "cli/conformance/cases.hpp"
#include "flywheel/adapt/adapters.hpp"
#include "flywheel/model/adapter.hpp"
#include "flywheel/model/adapter_archive.hpp"
#include "flywheel/model/model.hpp"

namespace flywheel::cli {
namespace {

/// Where factors are f16, results of engines that compute with such ones differ by so many standard deviations.
constexpr double tolerance_of_f16_factors = 2e-2;

struct adapter_case {
  const conformance_run& run;
  const json& facts;  ///< Of the case.
  std::string label;  ///< In the results.
  const model& base;
  const session_options& options;
  double tolerance;
  const io::archive& expected;
  tally& results;

  [[nodiscard]] std::vector<float> reference(const std::string& sequence) const {
    return read_floats(expected, facts.at("name").get<std::string>() + "." + sequence + ".logits_f64");
  }

  /// Positions 0, 8, 16, ... and the last one.
  void logits(const std::string& sequence, const std::vector<token_id>& ids) const {
    const std::string name = label + "." + sequence;
    std::vector<float> got;
    session s = base.new_session(options).value();
    const auto row = [&](std::size_t, std::span<const float> values) -> result<void> {
      got.insert(got.end(), values.begin(), values.end());
      return {};
    };
    if (const auto done = s.prefill_rows(ids, 8, row, {{}, run.stop}); !done)
      return results.refused(name, done.error());
    const std::vector<float> wanted = reference(sequence);
    const double worst = largest_difference(got, wanted) / deviation(wanted);
    results.check(
        name, worst <= tolerance,
        "largest difference is " + scientific(worst) + " standard deviations, allowed " + scientific(tolerance));
  }

  /// Equal up to the first step where the two best logits are too close to tell.
  void greedy(const std::string& sequence, const std::vector<token_id>& ids) const {
    const std::string key = "greedy_" + sequence;
    if (!facts.contains(key)) return;
    const std::string name = label + ".greedy." + sequence;
    const auto wanted = facts.at(key).at("ids").get<std::vector<token_id>>();
    const auto margins = facts.at(key).at("margins").get<std::vector<double>>();
    const double close = 4 * tolerance * deviation(reference(sequence));
    std::size_t compared = 0;
    while (compared < wanted.size() && compared < margins.size() && margins[compared] >= close) ++compared;
    session s = base.new_session(options).value();
    if (const auto done = s.prefill(ids, {{}, run.stop}); !done) return results.refused(name, done.error());
    generate_options how;
    how.max_tokens = static_cast<std::int32_t>(wanted.size());
    how.sampler = sampler_options::greedy();
    how.ignore_eos = true;
    how.control.stop = run.stop;
    const auto made = s.generate(how);
    if (!made) return results.refused(name, made.error());
    std::size_t equal = 0;
    while (equal < compared && equal < made->ids.size() && made->ids[equal] == wanted[equal]) ++equal;
    results.check(name, equal == compared && made->ids.size() == wanted.size(),
                  "token " + std::to_string(equal + 1) + " of " + std::to_string(wanted.size()) + " differs (" +
                      std::to_string(compared) + " compared)");
  }
};

/// Sum, norm and some values of every tensor that changes, when it is computed in double.
void check_merged(const json& facts, const std::string& label, const io::archive& merged, tally& results) {
  for (const auto& [name, wanted] : facts.at("merged").items()) {
    const io::tensor_info* const tensor = merged.find(name);
    std::vector<float> values(tensor && tensor->type == dtype::f32 ? static_cast<std::size_t>(tensor->dims.elements())
                                                                   : 0);
    if (!values.empty()) merged.read(*tensor, 0, std::as_writable_bytes(std::span(values))).value();
    double squares = 0;
    for (const float x : values) squares += static_cast<double>(x) * static_cast<double>(x);
    bool equal = values.size() >= 4;
    const auto compare = [&](double got, const json& want) {
      equal = equal && std::abs(got - want.get<double>()) <= 1e-5 * std::abs(want.get<double>());
    };
    compare(std::accumulate(values.begin(), values.end(), 0.0), wanted.at("sum"));
    compare(std::sqrt(squares), wanted.at("l2"));
    for (std::size_t i = 0; equal && i < 4; ++i) compare(static_cast<double>(values[i]), wanted.at("first4")[i]);
    if (equal) compare(static_cast<double>(values.back()), wanted.at("last"));
    results.check(label + ".merged." + name, equal, "its sum, norm or values differ by more than 1e-5 of them");
  }
}

}  // namespace

void run_adapters(const conformance_run& run, tally& results) {
  const json index = read_json(run.folder / "index.json");
  const auto base = model::open(run.folder / index.at("base").get<std::string>(), {run.context, {{}, run.stop}});
  if (!base) return results.refused("base", base.error());
  const io::archive expected = io::archive::open(run.folder / "expected.safetensors").value();
  const double tolerance = index.at("tolerance_f32_rel_to_std").get<double>();
  const io::archive base_file = io::archive::open(run.folder / index.at("base").get<std::string>()).value();
  for (const bool folder : {false, true}) {  // GGUF files and PEFT folders hold the same adapters
    std::map<std::string, adapter> adapters;
    std::map<std::string, io::archive> files;
    for (const auto& [name, facts] : index.at("adapters").items()) {
      run.check_stopped();
      auto file = open_adapter_archive(run.folder / (name + (folder ? "_peft" : ".gguf")), base_file);
      auto opened = file ? adapter::open(*base, *file, {{}, run.stop}) : result<adapter>(file.error());
      if (!opened) {
        results.refused(name + (folder ? "_peft" : ""), opened.error());
        continue;
      }
      adapters.emplace(name, *std::move(opened));
      files.emplace(name, *std::move(file));
    }
    for (const json& facts : index.at("cases")) {
      if (folder && facts.at("adapters").empty()) continue;
      session_options options;
      options.kv_type = dtype::f32;
      double allowed = tolerance;
      bool complete = true;
      std::vector<adapt::scaled_adapter> merged;
      for (const json& use : facts.at("adapters")) {
        const auto name = use.at("adapter").get<std::string>();
        complete = complete && adapters.contains(name);
        if (!complete) break;
        options.adapters.push_back({adapters.at(name), use.at("scale").get<float>()});
        merged.push_back({files.at(name), use.at("scale").get<float>()});
        if (index.at("adapters").at(name).at("dtype") == "F16") allowed = tolerance_of_f16_factors;
      }
      if (!complete) continue;  // said above
      const std::string label = facts.at("name").get<std::string>() + (folder ? ".peft" : "");
      try {
        for (const auto& [sequence, list] : index.at("sequences").items()) {
          run.check_stopped();
          const auto ids = list.get<std::vector<token_id>>();
          options.n_ctx = static_cast<std::int32_t>(ids.size()) + 64;
          const adapter_case one{run, facts, label, *base, options, allowed, expected, results};
          one.logits(sequence, ids);
          one.greedy(sequence, ids);
        }
        if (!merged.empty()) check_merged(facts, label, adapt::apply_adapters(base_file, merged).value(), results);
      } catch (const bad_result& e) {
        if (e.why().code == errc::cancelled) throw;
        results.refused(label, e.why());
      }
    }
  }
}

}  // namespace flywheel::cli
