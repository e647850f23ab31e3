// architectures/: logits, embeddings and greedy continuations of small random models, with f32 and f16 KV caches.
#include <cmath>
#include <optional>

#include "cli/conformance/cases.hpp"
#include "flywheel/model/model.hpp"

namespace flywheel::cli {
namespace {

/// The reference tensor of a sequence: the float64 evaluation where there is one.
std::optional<std::vector<float>> reference(const io::archive& expected, const std::string& name) {
  for (const std::string& tensor : {name + "_f64", name})
    if (expected.find(tensor) != nullptr) return read_floats(expected, tensor);
  return std::nullopt;
}

struct model_case {
  const conformance_run& run;
  const json& facts;
  std::string name;
  const model& loaded;
  const io::archive& expected;
  tally& results;

  [[nodiscard]] session open_session(dtype kv) const {
    session_options options;
    options.n_ctx = facts.value("context", 1024);
    options.kv_type = kv;
    return loaded.new_session(options).value();
  }
  /// Allowed difference in standard deviations. Weights in a block format may be multiplied with 8-bit activations.
  [[nodiscard]] double tolerance(dtype kv) const {
    const json& t = facts.at("tolerance");
    if (t.contains("quantized_activations_vs_f64")) return t.at("quantized_activations_vs_f64").get<double>();
    return t.at(kv == dtype::f32 ? "f32_vs_f64" : "f16_kv_or_activations_vs_f64").get<double>();
  }

  void logits(const std::string& sequence, const std::vector<token_id>& ids, dtype kv) const {
    const std::string label = name + "." + sequence + (kv == dtype::f32 ? "" : ".f16");
    const auto wanted = reference(expected, sequence + ".logits");
    if (!wanted) return;
    std::vector<float> got;
    session s = open_session(kv);
    const auto row = [&](std::size_t, std::span<const float> values) -> result<void> {
      got.insert(got.end(), values.begin(), values.end());
      return {};
    };
    if (const auto done = s.prefill_rows(ids, 8, row, {{}, run.stop}); !done)
      return results.refused(label, done.error());
    compare(label, got, *wanted, tolerance(kv));
  }

  void embedding(const std::string& sequence, const std::vector<token_id>& ids) const {
    const std::string label = name + "." + sequence;
    const auto wanted = reference(expected, sequence + ".embedding");
    if (!wanted) return;
    embed_options options;
    options.normalize = false;
    options.kv_type = dtype::f32;
    options.control.stop = run.stop;
    const auto got = loaded.embed(std::span(&ids, 1), options);
    if (!got) return results.refused(label, got.error());
    compare(label, got->values, *wanted, tolerance(dtype::f32));
  }

  void compare(const std::string& label, std::span<const float> got, std::span<const float> wanted,
               double allowed) const {
    const double worst = largest_difference(got, wanted) / deviation(wanted);
    results.check(
        label, worst <= allowed,
        got.size() != wanted.size()
            ? std::to_string(got.size()) + " values, expected " + std::to_string(wanted.size())
            : "largest difference is " + scientific(worst) + " standard deviations, allowed " + scientific(allowed));
  }

  /// The continuation must be equal up to the first step where the two best logits are too close to tell.
  void greedy(const std::string& sequence, const std::vector<token_id>& ids, const json& golden) const {
    const std::string label = name + ".greedy." + sequence;
    const auto wanted = golden.at("ids").get<std::vector<token_id>>();
    const auto margins = golden.value("margins", std::vector<double>());
    const auto rows = reference(expected, sequence + ".logits");
    const double close = 4 * tolerance(dtype::f32) * (rows ? deviation(*rows) : 1);
    std::size_t compared = 0;
    while (compared < wanted.size() && (compared >= margins.size() || margins[compared] >= close)) ++compared;
    session s = open_session(dtype::f32);
    if (const auto done = s.prefill(ids, {{}, run.stop}); !done) return results.refused(label, done.error());
    generate_options how;
    how.max_tokens = static_cast<std::int32_t>(wanted.size());
    how.sampler = sampler_options::greedy();
    how.ignore_eos = true;
    how.control.stop = run.stop;
    const auto made = s.generate(how);
    if (!made) return results.refused(label, made.error());
    std::size_t equal = 0;
    while (equal < compared && equal < made->ids.size() && made->ids[equal] == wanted[equal]) ++equal;
    results.check(label, equal == compared && made->ids.size() == wanted.size(),
                  "token " + std::to_string(equal + 1) + " of " + std::to_string(wanted.size()) + " differs (" +
                      std::to_string(compared) + " compared)");
  }

  void vocabulary() const {
    const json checks = facts.value("tokenizer_checks", json::array());
    if (!checks.empty() && !loaded.tokenizer()) return results.fail(name + ".tokenizer", "the vocabulary was not read");
    for (std::size_t i = 0; i < checks.size(); ++i) {
      const std::string label = name + ".tokenizer." + std::to_string(i + 1);
      const auto text = checks[i].at("text").get<std::string>();
      const auto got = loaded.tokenizer().encode(text, {.add_special = checks[i].value("add_special", false)});
      if (!got)
        results.refused(label, got.error());
      else
        results.check(label, *got == checks[i].at("ids").get<std::vector<token_id>>(),
                      dump(text) + " gave " + dump(*got));
    }
  }

  void all() const {
    for (const auto& [sequence, list] : facts.at("sequences").items()) {
      run.check_stopped();
      const auto ids = list.get<std::vector<token_id>>();
      embedding(sequence, ids);
      logits(sequence, ids, dtype::f32);
      logits(sequence, ids, dtype::f16);
      if (facts.contains("greedy") && facts.at("greedy").contains(sequence))
        greedy(sequence, ids, facts.at("greedy").at(sequence));
    }
    vocabulary();
  }
};

}  // namespace

void run_architectures(const conformance_run& run, tally& results) {
  const json index = read_json(run.folder / "index.json");
  for (const json& facts : index.at("models")) {
    run.check_stopped();
    const auto name = facts.at("name").get<std::string>();
    try {
      const auto loaded = model::open(run.folder / facts.at("gguf").get<std::string>(), {run.context, {{}, run.stop}});
      if (!loaded) {
        results.refused(name, loaded.error());
        continue;
      }
      const io::archive expected = io::archive::open(run.folder / facts.at("expected").get<std::string>()).value();
      model_case{run, facts, name, *loaded, expected, results}.all();
    } catch (const bad_result& e) {
      if (e.why().code == errc::cancelled) throw;
      results.refused(name, e.why());
    }
  }
}

void run_quantized(const conformance_run& run, tally& results) {
  const json index = read_json(run.folder / "index.json");
  for (const json& facts : index.at("models")) {
    run.check_stopped();
    const auto name = facts.at("name").get<std::string>();
    try {
      const auto loaded = model::open(run.folder / facts.at("gguf").get<std::string>(), {run.context, {{}, run.stop}});
      if (!loaded) {
        results.refused(name, loaded.error());
        continue;
      }
      const auto ids = index.at("sequences").at(facts.at("ids_key").get<std::string>()).get<std::vector<token_id>>();
      session_options options;
      options.n_ctx = static_cast<std::int32_t>(ids.size());
      options.kv_type = dtype::f32;
      session s = loaded->new_session(options).value();
      const auto logprobs = s.score(ids, {{}, run.stop});  // [ids - 1]
      if (!logprobs) {
        results.refused(name, logprobs.error());
        continue;
      }
      // Tolerances of the data's README: float activations, 8-bit activations, and those with 2- and 3-bit weights.
      const auto type = facts.at("type").get<std::string>();
      const bool plain = type == "F32" || type == "F16" || type == "BF16";
      const bool coarse = type == "Q2_K" || type == "Q3_K";
      const double mean_allowed = plain ? 0.002 : coarse ? 0.05 : 0.03;
      const double rms_allowed = coarse ? 0.2 : 0.15;
      const io::archive expected = io::archive::open(run.folder / facts.at("expected").get<std::string>()).value();
      const std::vector<float> nll = read_floats(expected, "nll_f64");
      double sum = 0;
      double squares = 0;
      for (std::size_t i = 0; i < logprobs->size(); ++i) {
        sum -= (*logprobs)[i];
        if (nll.size() == logprobs->size()) squares += std::pow(-(*logprobs)[i] - nll[i], 2);
      }
      const auto n = static_cast<double>(logprobs->size());
      const double delta = sum / n - facts.at("mean_nll_f64").get<double>();
      results.check(
          name + ".mean", std::abs(delta) <= mean_allowed,
          "mean negative log-likelihood is off by " + decimal(delta, 5) + ", allowed " + decimal(mean_allowed, 3));
      if (nll.size() != logprobs->size())
        results.fail(name + ".positions",
                     std::to_string(logprobs->size()) + " values, expected " + std::to_string(nll.size()));
      else
        results.check(name + ".positions", std::sqrt(squares / n) <= rms_allowed,
                      "root mean square difference " + decimal(std::sqrt(squares / n), 4) + ", allowed " +
                          decimal(rms_allowed, 2));
    } catch (const bad_result& e) {
      if (e.why().code == errc::cancelled) throw;
      results.refused(name, e.why());
    }
  }
}

}  // namespace flywheel::cli
