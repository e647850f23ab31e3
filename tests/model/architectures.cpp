// Every architecture: random models of the conformance set against their float64 evaluation, and models made here
// against the meaning of their graph in double precision.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "device/runner.hpp"
#include "flywheel/device/accelerator.hpp"
#include "flywheel/device/simulator.hpp"
#include "flywheel/graph/rewrite.hpp"
#include "flywheel/model/model.hpp"
#include "src/model/architecture.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/recording_observer.hpp"
#include "support/reference_graph.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

using tensors = std::vector<tiny_tensor>;

/// One thread is enough for models of this size.
model open_model(const std::filesystem::path& path, const char* isa = "") {
  context_options options;
  options.threads = 1;
  options.isa = isa;
  return model::open(path, {context::create(options).value(), {}}).value();
}

std::vector<float> floats_of(const io::archive& file, const std::string& name) {
  const io::tensor_info* info = file.find(name);
  if (!info) throw std::logic_error("no tensor " + name);
  std::vector<float> values(static_cast<std::size_t>(info->dims.elements()));
  formats::decode(file.view(*info).value(), values).value();
  return values;
}

/// Largest difference in standard deviations of `want`.
template <class T>
double distance(std::span<const float> got, const std::vector<T>& want) {
  REQUIRE(got.size() == want.size());
  double mean = 0, square = 0, worst = 0;
  for (const T x : want) mean += static_cast<double>(x) / static_cast<double>(want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    square += std::pow(static_cast<double>(want[i]) - mean, 2);
    const double delta = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    worst = std::max(worst, std::isfinite(delta) ? delta : HUGE_VAL);
  }
  return worst / std::sqrt(square / static_cast<double>(want.size()));
}

}  // namespace

TEST_CASE("Conformance models give the logits of their float64 evaluation") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/architectures");
  const auto index = nlohmann::json::parse(std::ifstream(folder / "index.json"));
  std::size_t compared = 0;
  for (const auto& facts : index["models"]) {
    if (!detail::find_architecture(facts["architecture"].get<std::string>())) continue;
    INFO(facts["name"].get<std::string>());
    const model m = open_model(folder / facts["gguf"].get<std::string>());
    const io::archive expected = io::archive::open(folder / facts["expected"].get<std::string>()).value();
    for (const auto& [sequence, list] : facts["sequences"].items()) {
      if (!expected.find(sequence + ".logits_f64")) continue;
      const auto ids = list.get<std::vector<token_id>>();
      const std::vector<float> want = floats_of(expected, sequence + ".logits_f64");
      for (const dtype kv : {dtype::f32, dtype::f16}) {
        session_options options;
        options.n_ctx = facts.value("context", 1024);
        options.kv_type = kv;
        session s = m.new_session(options).value();
        std::vector<float> got;
        s.prefill_rows(ids, 8, [&](std::size_t, std::span<const float> row) -> result<void> {
           got.insert(got.end(), row.begin(), row.end());
           return {};
         }).value();
        const auto& tolerance = facts["tolerance"];
        // Products with MXFP4 weights take 8-bit activations.
        const char* allowed = tolerance.contains("quantized_activations_vs_f64") ? "quantized_activations_vs_f64"
                              : kv == dtype::f32                                 ? "f32_vs_f64"
                                                                                 : "f16_kv_or_activations_vs_f64";
        INFO("sequence " << sequence << ", cache " << to_string(kv));
        CHECK(distance(got, want) <= tolerance[allowed].get<double>());
        ++compared;
      }
    }
  }
  CHECK(compared >= 60);  // 15 models, two sequences, two caches
}

TEST_CASE("Conformance models with exact activations are within float32's tolerance of float64") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/architectures");
  const auto index = nlohmann::json::parse(std::ifstream(folder / "index.json"));
  for (const auto& facts : index["models"]) {
    if (facts["name"] != "gpt-oss_mxfp4") continue;
    // The generic products take f32 activations, whatever the weights are.
    const model m = open_model(folder / facts["gguf"].get<std::string>(), "generic");
    const io::archive expected = io::archive::open(folder / facts["expected"].get<std::string>()).value();
    session_options exact;
    exact.n_ctx = 1024;
    exact.kv_type = dtype::f32;
    session s = m.new_session(exact).value();
    std::vector<float> got;
    s.prefill_rows(facts["sequences"]["a"].get<std::vector<token_id>>(), 8,
                   [&](std::size_t, std::span<const float> row) -> result<void> {
                     got.insert(got.end(), row.begin(), row.end());
                     return {};
                   })
        .value();
    CHECK(distance(got, floats_of(expected, "a.logits_f64")) <= facts["tolerance"]["f32_vs_f64"].get<double>());
  }
}

TEST_CASE("Quantized conformance models have the reference likelihood") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/architectures/quantized");
  const auto index = nlohmann::json::parse(std::ifstream(folder / "index.json"));
  for (const auto& facts : index["models"]) {
    const auto type = facts["type"].get<std::string>();
    INFO(facts["name"].get<std::string>());
    const auto ids = index["sequences"][facts["ids_key"].get<std::string>()].get<std::vector<token_id>>();
    session_options options;
    options.n_ctx = static_cast<std::int32_t>(ids.size());
    options.kv_type = dtype::f32;
    const model m = open_model(folder / facts["gguf"].get<std::string>());
    double sum = 0;
    const std::vector<float> scores = m.new_session(options).value().score(ids).value();
    for (const float logprob : scores) sum -= static_cast<double>(logprob);
    CHECK(std::abs(sum / static_cast<double>(scores.size()) - facts["mean_nll_f64"].get<double>()) <=
          (type == "F16" ? 0.002 : 0.03));
  }
}

namespace {

/// Changes a tiny llama into a model of another architecture.
struct editor {
  io::metadata& meta;
  tensors& list;
  const tiny_model& m;
  tiny_random random{7};

  [[nodiscard]] std::string prefix() const { return m.architecture + "."; }
  void set(const std::string& key, io::value v) { meta.set(prefix() + key, std::move(v)); }
  void number(const std::string& key, std::uint32_t v) { set(key, v); }
  void remove(const std::string& name) {
    std::erase_if(list, [&](const tiny_tensor& t) { return t.plan.name == name; });
  }
  /// Random values around `center`.
  void add(const std::string& name, shape dims, float center = 0, float spread = 0.3F) {
    tiny_tensor t{{name, dtype::f32, dims, 0}, {}};
    for (std::int64_t i = 0; i < dims.elements(); ++i) t.values.push_back(center + spread * random.normal());
    list.push_back(std::move(t));
  }
  void matrix(const std::string& name, shape dims) {
    add(name, dims, 0, 1 / std::sqrt(static_cast<float>(dims.cols())));
  }
  /// Calls f with the name of each layer, "blk.0.".
  template <class F>
  void each_layer(F&& f) {
    for (std::int32_t layer = 0; layer < m.layers; ++layer) f("blk." + std::to_string(layer) + ".");
  }
  [[nodiscard]] std::int64_t head() const { return m.hidden / m.heads; }
  [[nodiscard]] std::int64_t kv_width() const { return m.kv_heads * head(); }
  void head_norms() {
    each_layer([&](const std::string& block) {
      add(block + "attn_q_norm.weight", {head()}, 1);
      add(block + "attn_k_norm.weight", {head()}, 1);
    });
  }
  void attention_biases() {
    each_layer([&](const std::string& block) {
      add(block + "attn_q.bias", {m.hidden});
      add(block + "attn_k.bias", {kv_width()});
      add(block + "attn_v.bias", {kv_width()});
    });
  }
  void post_norms() {
    each_layer([&](const std::string& block) {
      add(block + "post_attention_norm.weight", {m.hidden}, 1);
      add(block + "post_ffw_norm.weight", {m.hidden}, 1);
    });
  }
  void yarn(float factor) {
    set("rope.scaling.type", std::string("yarn"));
    set("rope.scaling.factor", factor);
    number("rope.scaling.original_context_length", 16);
  }
};

void gemma4_tensors(editor& e) {
  const std::int64_t d = e.m.hidden, vocab = e.m.vocab, width = 8, layers = e.m.layers;
  e.set("attention.sliding_window_pattern", std::vector<bool>{true, false, true, false});
  e.number("attention.sliding_window", 12);
  e.number("attention.shared_kv_layers", 2);
  e.number("attention.key_length", 16);
  e.number("attention.value_length", 16);
  e.number("attention.key_length_swa", 8);
  e.number("attention.value_length_swa", 8);
  e.number("rope.dimension_count", 16);
  e.number("rope.dimension_count_swa", 8);
  e.set("rope.freq_base", 1e6F);
  e.set("rope.freq_base_swa", 1e4F);
  e.number("embedding_length_per_layer_input", static_cast<std::uint32_t>(width));
  e.number("expert_feed_forward_length", 24);
  e.set("attention.head_count_kv", std::vector<std::uint32_t>{2, 1, 2, 1});
  e.set("feed_forward_length", std::vector<std::uint32_t>{64, 64, 128, 128});
  e.set("final_logit_softcapping", 3.0F);
  e.list.erase(e.list.begin() + 1, e.list.end());  // all but the embedding
  e.add("output_norm.weight", {d}, 1);
  e.matrix("per_layer_token_embd.weight", {vocab, width * layers});
  e.matrix("per_layer_model_proj.weight", {width * layers, d});
  e.add("per_layer_proj_norm.weight", {width}, 1);
  e.add("rope_freqs.weight", {8}, 2, 0.2F);
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const std::string block = "blk." + std::to_string(layer) + ".";
    const bool local = layer % 2 == 0;
    const std::int64_t head = local ? 8 : 16, kv = (local ? 2 : 1) * head, ff = layer < 2 ? 64 : 128;
    for (const char* name : {"attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm"})
      e.add(block + name + ".weight", {d}, 1);
    e.matrix(block + "attn_q.weight", {e.m.heads * head, d});
    e.add(block + "attn_q_norm.weight", {head}, 1);
    e.matrix(block + "attn_output.weight", {d, e.m.heads * head});
    if (layer < 2) {
      e.matrix(block + "attn_k.weight", {kv, d});
      if (local) e.matrix(block + "attn_v.weight", {kv, d});  // global layers: the keys
      e.add(block + "attn_k_norm.weight", {head}, 1);
    }
    e.matrix(block + "ffn_gate.weight", {ff, d});
    e.matrix(block + "ffn_up.weight", {ff, d});
    e.matrix(block + "ffn_down.weight", {d, ff});
    e.matrix(block + "inp_gate.weight", {width, d});
    e.matrix(block + "proj.weight", {d, width});
    e.add(block + "layer_output_scale.weight", {1}, 1);
    if (layer != 1) continue;  // experts beside the dense layer
    for (const char* name : {"post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"})
      e.add(block + name + ".weight", {d}, 1);
    e.matrix(block + "ffn_gate_inp.weight", {4, d});
    e.add(block + "ffn_gate_inp.scale", {d}, 1);
    e.matrix(block + "ffn_gate_up_exps.weight", {4, 48, d});
    e.matrix(block + "ffn_down_exps.weight", {4, d, 24});
    e.add(block + "ffn_down_exps.scale", {4}, 1);
  }
}

struct variant {
  const char* name;  ///< Of the architecture.
  std::int32_t layers, experts;
  void (*edit)(editor& e);
};

const variant variants[] = {
    {"llama", 2, 0, [](editor&) {}},
    {"llama", 2, 4, [](editor&) {}},
    {"llama", 2, 0,
     [](editor& e) {  // layers of different sizes
       e.set("feed_forward_length", std::vector<std::uint32_t>{64, 96});
       e.set("attention.head_count_kv", std::vector<std::uint32_t>{2, 4});
       for (const char* name : {"attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down"})
         e.remove(std::string("blk.1.") + name + ".weight");
       e.matrix("blk.1.attn_k.weight", {32, 32});
       e.matrix("blk.1.attn_v.weight", {32, 32});
       e.matrix("blk.1.ffn_gate.weight", {96, 32});
       e.matrix("blk.1.ffn_up.weight", {96, 32});
       e.matrix("blk.1.ffn_down.weight", {32, 96});
     }},
    {"qwen2", 2, 0, [](editor& e) { e.attention_biases(); }},
    {"qwen3", 2, 0,
     [](editor& e) {
       e.head_norms();
       e.yarn(4);
     }},
    {"qwen3moe", 2, 5,
     [](editor& e) {
       e.head_norms();
       e.set("expert_weights_scale", 1.5F);
     }},
    {"phi3", 2, 0,
     [](editor& e) {
       e.number("attention.sliding_window", 20);
       e.set("rope.scaling.type", std::string("longrope"));
       e.number("rope.scaling.original_context_length", 64);
       e.set("rope.scaling.attn_factor", 1.2F);
       e.add("rope_factors_short.weight", {e.head() / 2}, 1.5F, 0.2F);
       e.add("rope_factors_long.weight", {e.head() / 2}, 5, 1);
       e.each_layer([&](const std::string& block) {
         for (const char* name : {"attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"})
           e.remove(block + name + ".weight");
         e.matrix(block + "attn_qkv.weight", {e.m.hidden + 2 * e.kv_width(), e.m.hidden});
         e.matrix(block + "ffn_up.weight", {2 * e.m.ffn, e.m.hidden});
       });
     }},
    {"granite", 2, 0,
     [](editor& e) {
       e.set("embedding_scale", 12.0F);
       e.set("residual_scale", 0.22F);
       e.set("attention.scale", 0.3F);
       e.set("logit_scale", 8.0F);
     }},
    {"granite", 1, 0,
     [](editor& e) {
       e.set("logit_scale", 1.0F);
       e.set("rope.scaling.finetuned", false);
     }},
    {"smollm3", 5, 0, [](editor&) {}},
    {"mistral3", 2, 0,
     [](editor& e) {
       e.yarn(4);
       e.set("rope.scaling.yarn_log_multiplier", 1.0F);
       e.set("attention.temperature_scale", 0.4F);
     }},
    {"mistral3", 2, 4, [](editor&) {}},
    {"gpt-oss", 2, 4,
     [](editor& e) {
       e.attention_biases();
       e.yarn(8);
       e.number("attention.sliding_window", 12);
       e.number("expert_feed_forward_length", static_cast<std::uint32_t>(e.m.ffn));
       e.each_layer([&](const std::string& block) {
         e.remove(block + "ffn_norm.weight");
         e.add(block + "post_attention_norm.weight", {e.m.hidden}, 1);
         e.add(block + "attn_output.bias", {e.m.hidden});
         e.add(block + "attn_sinks.weight", {e.m.heads}, 0, 2);
         e.add(block + "ffn_gate_inp.bias", {4});
         e.add(block + "ffn_gate_exps.bias", {4, e.m.ffn}, 0, 4);  // some beyond the activation's limit
         e.add(block + "ffn_up_exps.bias", {4, e.m.ffn}, 0, 4);
         e.add(block + "ffn_down_exps.bias", {4, e.m.hidden});
       });
     }},
    {"gemma2", 3, 0,
     [](editor& e) {
       e.post_norms();
       e.number("attention.sliding_window", 12);
       e.set("attn_logit_softcapping", 2.0F);
       e.set("final_logit_softcapping", 3.0F);
     }},
    {"gemma3", 7, 0,
     [](editor& e) {
       e.post_norms();
       e.head_norms();
       e.number("attention.sliding_window", 12);
       e.set("rope.freq_base", 1e6F);
       e.set("rope.scaling.type", std::string("linear"));
       e.set("rope.scaling.factor", 8.0F);
     }},
    {"gemma4", 4, 4, gemma4_tensors},
};

tiny_model write_variant(const std::filesystem::path& path, const variant& v, dtype weights) {
  tiny_model m;
  m.architecture = v.name;
  m.layers = v.layers;
  m.experts = v.experts;
  m.weights = weights;
  m.vocabulary = false;
  write_tiny_model(path, m, [&](io::metadata& meta, tensors& list) {
    editor e{meta, list, m};
    v.edit(e);
  });
  return m;
}

}  // namespace

TEST_CASE("Every architecture's model equals the meaning of its graph, plain and optimized") {
  for (const variant& v : variants) {
    INFO(v.name << ", " << v.layers << " layers, " << v.experts << " experts");
    const temp_folder folder;
    const tiny_model m = write_variant(folder / "m.gguf", v, dtype::f32);
    const io::archive file = io::archive::open(folder / "m.gguf").value();
    const detail::hyperparameters h = detail::read_hyperparameters(file).value();
    const graph::graph plain =
        detail::architecture_of(file.metadata()).value()->build(file, h, detail::graph_output::logits).value();
    const graph::graph optimized = graph::optimize(plain);
    CHECK(graph::validate(optimized));
    std::vector<std::int32_t> ids(70), rows(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<std::int32_t>((i * 7919 + 31) % static_cast<std::size_t>(m.vocab));
      rows[i] = static_cast<std::int32_t>(i);
    }
    for (const std::int64_t n_ctx : {64, 128}) {
      reference_graph meaning(plain, file), same(optimized, file);
      meaning.n_ctx = same.n_ctx = n_ctx;
      const auto want = meaning.run(ids, rows);
      const auto also = same.run(ids, rows);
      CHECK(distance(std::vector<float>(also.begin(), also.end()), want) < 1e-5);
      for (const graph::graph& g : {plain, optimized})
        for (const std::size_t chunk : {ids.size(), std::size_t{9}, std::size_t{1}}) {
          graph_runner runner(g, file, device::make_cpu_device("").value(), serial_executor());
          runner.n_ctx = n_ctx;
          test_cache cache(g, dtype::f32, 128);
          CHECK(distance(runner.run_all(ids, cache, chunk), want) < 2e-4);
        }
      if (!h.long_rope) break;  // nothing else depends on it
      if (n_ctx == 64) {
        meaning.n_ctx = 128;
        CHECK(distance(std::vector<float>(want.begin(), want.end()), meaning.run(ids, rows)) > 1e-3);
      }
    }
  }
}

TEST_CASE("Every architecture's model gives the same logits on simulated NPUs, bit for bit", "[devices]") {
  for (const variant& v : variants) {
    INFO(v.name << ", " << v.layers << " layers, " << v.experts << " experts");
    const temp_folder folder;
    const tiny_model m = write_variant(folder / "m.gguf", v, dtype::q8_channel);
    std::vector<token_id> ids(70);
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<token_id>(i * 7919 + 31) % m.vocab;
    const auto logits = [&](std::vector<std::shared_ptr<const device::device>> devices) {
      context_options options;
      options.threads = 1;
      const model opened =
          model::open(folder / "m.gguf", {context::create(options).value(), {}, std::move(devices)}).value();
      session s = opened.new_session().value();
      std::vector<float> all;
      s.prefill_rows(ids, 1, [&](std::size_t, std::span<const float> row) -> result<void> {
         all.insert(all.end(), row.begin(), row.end());
         return {};
       }).value();
      s.decode(3).value();
      all.insert(all.end(), s.logits().begin(), s.logits().end());
      return all;
    };
    const std::vector<float> want = logits({});
    for (const char* profile : {"hexagon-sim", "xdna-sim"}) {
      INFO(profile);
      const auto npu = device::simulated_npu::create(profile).value();
      device::accelerator_options with;
      with.min_multiply_adds = 0;
      const std::vector<float> got = logits({device::make_accelerator(npu->table(), {}, with).value()});
      CHECK((got.size() == want.size() && std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0));
      CHECK(npu->report().submissions > 0);
    }
  }
}

namespace {

/// Logits of every position, and of a token decoded behind them.
std::vector<float> all_logits(const std::filesystem::path& path, unsigned threads,
                              std::shared_ptr<device::observer> observer,
                              std::vector<std::shared_ptr<const device::device>> devices = {}) {
  context_options options;
  options.threads = threads;
  const model opened =
      model::open(path, {context::create(options).value(), {}, std::move(devices), std::move(observer)}).value();
  session_options exact;
  exact.kv_type = dtype::f32;
  exact.n_batch = 32;
  session s = opened.new_session(exact).value();
  std::vector<token_id> ids(70);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<token_id>(i * 7919 + 31) % opened.info().n_vocab;
  std::vector<float> all;
  s.prefill_rows(ids, 1, [&](std::size_t, std::span<const float> row) -> result<void> {
     all.insert(all.end(), row.begin(), row.end());
     return {};
   }).value();
  s.decode(3).value();
  all.insert(all.end(), s.logits().begin(), s.logits().end());
  return all;
}

bool equal_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("An observer sees what goes into every weight of every architecture, and changes nothing", "[observer]") {
  for (const variant& v : variants) {
    INFO(v.name << ", " << v.layers << " layers, " << v.experts << " experts");
    const temp_folder folder;
    const tiny_model m = write_variant(folder / "m.gguf", v, dtype::f32);
    const io::archive file = io::archive::open(folder / "m.gguf").value();
    const detail::hyperparameters h = detail::read_hyperparameters(file).value();
    const graph::graph plain =
        detail::architecture_of(file.metadata()).value()->build(file, h, detail::graph_output::logits).value();
    std::vector<std::int32_t> ids(71), rows(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = i == 70 ? 3 : static_cast<std::int32_t>((i * 7919 + 31) % static_cast<std::size_t>(m.vocab));
      rows[i] = static_cast<std::int32_t>(i);
    }
    reference_graph meaning(plain, file);
    meaning.n_ctx = 128;
    (void)meaning.run(ids, rows);

    const auto seen = std::make_shared<recording_observer>(), by_three = std::make_shared<recording_observer>();
    const std::vector<float> want = all_logits(folder / "m.gguf", 1, nullptr);
    CHECK(equal_bits(all_logits(folder / "m.gguf", 1, seen), want));
    CHECK(equal_bits(all_logits(folder / "m.gguf", 3, by_three), want));
    CHECK(seen->rows == by_three->rows);
    std::size_t compared = 0;
    for (std::uint32_t p = 0; p < seen->points.size(); ++p) {
      const device::observation_point& point = seen->points[p];
      for (const std::string& weight : point.weights)
        for (std::int64_t e = 0; e < std::max<std::int64_t>(1, point.n_experts); ++e) {
          INFO(weight << ", expert " << e);
          const auto expected = meaning.inputs.find({weight, e});
          const auto got = seen->rows.find({p, e});
          REQUIRE((expected == meaning.inputs.end()) == (got == seen->rows.end()));
          if (got == seen->rows.end()) continue;  // an expert that no token chose
          CHECK(distance(got->second, expected->second) < 2e-4);
          ++compared;
        }
    }
    CHECK(compared == meaning.inputs.size());
  }
}

TEST_CASE("What an observer does not want is not in its way", "[observer]") {
  const temp_folder folder;
  write_variant(folder / "m.gguf", variants[1], dtype::q8_channel);
  const auto none = std::make_shared<recording_observer>(), one = std::make_shared<recording_observer>();
  none->wanted = [](const device::observation_point&) { return false; };
  one->wanted = [](const device::observation_point& p) { return p.weights.front() == "blk.1.attn_q.weight"; };
  const std::vector<float> want = all_logits(folder / "m.gguf", 1, nullptr);
  CHECK(equal_bits(all_logits(folder / "m.gguf", 1, none), want));
  CHECK(none->rows.empty());
  CHECK(equal_bits(all_logits(folder / "m.gguf", 1, one), want));
  REQUIRE(one->rows.size() == 1);
  const device::observation_point& point = one->points[one->rows.begin()->first.first];
  CHECK(point.weights == std::vector<std::string>{"blk.1.attn_q.weight", "blk.1.attn_k.weight", "blk.1.attn_v.weight"});
  CHECK(one->rows.begin()->second.size() == static_cast<std::size_t>(71 * point.cols));
}

TEST_CASE("With products on an NPU an observer sees the same", "[observer][devices]") {
  const temp_folder folder;
  write_variant(folder / "m.gguf", variants[0], dtype::q8_channel);
  const auto on_cpu = std::make_shared<recording_observer>(), on_npu = std::make_shared<recording_observer>();
  const std::vector<float> want = all_logits(folder / "m.gguf", 1, on_cpu);
  const auto npu = device::simulated_npu::create("hexagon-sim").value();
  device::accelerator_options with;
  with.min_multiply_adds = 0;
  CHECK(equal_bits(all_logits(folder / "m.gguf", 1, on_npu, {device::make_accelerator(npu->table(), {}, with).value()}),
                  want));
  CHECK(npu->report().submissions > 0);
  CHECK(on_npu->rows == on_cpu->rows);
}

TEST_CASE("An unknown architecture is refused with the nearest name and the keys that were found") {
  io::metadata meta;
  meta.set("general.architecture", std::string("qwen3_moe"));
  meta.set("qwen3_moe.block_count", std::uint32_t{2});
  meta.set("qwen3_moe.expert_count", std::uint32_t{8});
  const auto found = detail::architecture_of(meta);
  REQUIRE(!found);
  CHECK(found.error().code == errc::unsupported);
  CHECK(found.error().message.find("'qwen3_moe'; the nearest supported name is 'qwen3moe'") != std::string::npos);
  CHECK(found.error().message.find("qwen3_moe.*: block_count, expert_count") != std::string::npos);
  CHECK(detail::find_architecture("lama").error().message.find("is 'llama'") != std::string::npos);
}

TEST_CASE("Numbers of layers are read one by one, and checked") {
  const auto error_of = [](const char* architecture, std::int32_t layers, const std::string& key, io::value value) {
    const temp_folder folder;
    tiny_model m;
    m.architecture = architecture;
    m.layers = layers;
    write_tiny_model(folder / "m.gguf", m,
                     [&](io::metadata& meta, tensors&) { meta.set(architecture + ("." + key), std::move(value)); });
    const auto opened = model::open(folder / "m.gguf");
    REQUIRE(!opened);
    INFO(opened.error().to_string());
    CHECK(opened.error().where.find(key) != std::string::npos);
    return opened.error().code;
  };
  using numbers = std::vector<std::uint32_t>;
  CHECK(error_of("llama", 2, "feed_forward_length", numbers{64}) == errc::malformed);
  CHECK(error_of("llama", 2, "feed_forward_length", numbers{64, 0}) == errc::malformed);
  CHECK(error_of("llama", 2, "attention.head_count_kv", numbers{2, 3}) == errc::malformed);
  CHECK(error_of("llama", 2, "attention.key_length", numbers{8, 16}) == errc::unsupported);
  CHECK(error_of("gemma4", 2, "attention.sliding_window_pattern", std::vector<bool>{true}) == errc::malformed);
  CHECK(error_of("granite", 1, "residual_scale", std::nanf("")) == errc::malformed);
  CHECK(error_of("mistral3", 1, "attention.temperature_scale", 0.5F) == errc::malformed);
}

namespace {

/// A tiny model after `edit`, as its hyperparameters or as its graph.
struct edited_file {
  template <class F>
  edited_file(const char* architecture, std::int32_t layers, F&& edit) {
    tiny_model m;
    m.architecture = architecture;
    m.layers = layers;
    m.vocabulary = false;
    write_tiny_model(folder / "m.gguf", m, [&](io::metadata& meta, tensors& list) {
      editor e{meta, list, m};
      edit(e);
    });
    file = io::archive::open(folder / "m.gguf").value();
  }
  [[nodiscard]] detail::hyperparameters numbers() const { return detail::read_hyperparameters(file).value(); }
  [[nodiscard]] result<graph::graph> build() const {
    return detail::architecture_of(file.metadata()).value()->build(file, numbers(), detail::graph_output::logits);
  }
  temp_folder folder;
  io::archive file;
};

void fused_phi3(editor& e) {
  e.each_layer([&](const std::string& block) {
    for (const char* name : {"attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"}) e.remove(block + name + ".weight");
    e.matrix(block + "attn_qkv.weight", {e.m.hidden + 2 * e.kv_width(), e.m.hidden});
    e.matrix(block + "ffn_up.weight", {2 * e.m.ffn, e.m.hidden});
  });
}

}  // namespace

TEST_CASE("Rotary scaling that is not named is what the file has numbers for") {
  const edited_file longs("phi3", 1, [](editor& e) {
    e.number("rope.scaling.original_context_length", 64);
    e.set("rope.scaling.attn_factor", 1.25F);
    for (const char* name : {"rope_factors_short.weight", "rope_factors_long.weight"}) e.add(name, {e.head() / 2}, 5);
    fused_phi3(e);
  });
  CHECK(longs.numbers().long_rope);
  CHECK(longs.numbers().rope.attn_factor == 1.25);
  CHECK(longs.numbers().rope.original_context == 64);
  REQUIRE(longs.build());
  const auto scale = [](const char* type, const char* key) {
    return edited_file("llama", 1,
                       [&](editor& e) {
                         if (type) e.set("rope.scaling.type", std::string(type));
                         e.set(key, 8.0F);
                       })
        .numbers()
        .rope.freq_scale;
  };
  CHECK(scale(nullptr, "rope.scaling.factor") == 0.125);
  CHECK(scale(nullptr, "rope.scale_linear") == 0.125);
  CHECK(scale("linear", "rope.scaling.factor") == 0.125);
  CHECK(scale("none", "rope.scaling.factor") == 1);
  CHECK(scale("none", "rope.scale_linear") == 1);
}

TEST_CASE("What a decoder cannot do with a file's biases and masks is an error, not left out") {
  const auto refused = [](const edited_file& f, const std::string& where) {
    const auto built = f.build();
    REQUIRE(!built);
    CHECK(built.error().code == errc::unsupported);
    CHECK(built.error().where == where);
  };
  refused(edited_file("llama", 1, [](editor& e) { e.set("attention.causal", false); }), "llama.attention.causal");
  for (const std::string part : {"attn_qkv", "ffn_up"})
    refused(edited_file("phi3", 1,
                        [&](editor& e) {
                          fused_phi3(e);
                          e.add("blk.0." + part + ".bias",
                                {part == "ffn_up" ? 2 * e.m.ffn : e.m.hidden + 2 * e.kv_width()});
                        }),
            "blk.0." + part + ".bias");
}

TEST_CASE("Biases of values and of the output are in the graph") {
  const auto uses = [](const edited_file& f, const std::string& name) {
    const graph::graph g = f.build().value();
    return std::any_of(g.weights.begin(), g.weights.end(), [&](const auto& w) { return w.name == name; });
  };
  CHECK(uses(edited_file("llama", 1, [](editor& e) { e.add("output.bias", {e.m.vocab}); }), "output.bias"));
  CHECK(uses(edited_file("gemma4", 4,
                         [](editor& e) {
                           gemma4_tensors(e);
                           e.number("expert_count", 4);
                           e.number("expert_used_count", 2);
                           e.add("blk.0.attn_v.bias", {16});
                         }),
             "blk.0.attn_v.bias"));
}
