// Mixtures of experts from dense models: what they are made of, that they run, and what routers prefer.
#include "flywheel/adapt/experts.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "flywheel/model/convert.hpp"
#include "flywheel/model/model.hpp"
#include "flywheel/model/open.hpp"
#include "support/catch.hpp"
#include "support/recording_observer.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::adapt;
using namespace flywheel::test;

namespace {

constexpr std::int64_t experts_layers = 3;
const char* const experts_prompts[] = {"aaa bbb aba bab abab", "123 456 789 1010 42", "XYZ ZZ YX XYXY ZY"};

void experts_models(const temp_folder& folder) {
  for (const char* name : {"a", "b", "c"})
    write_tiny_model(
        folder / (std::string(name) + ".gguf"),
        {.layers = experts_layers, .weights = dtype::f16, .seed = static_cast<std::uint64_t>(name[0]), .name = name});
}

experts_recipe experts_of(std::vector<std::string> models, const std::string& more = "experts_per_token: 2\n") {
  std::string yaml = "base_model: a.gguf\n" + more + "experts:\n";
  for (std::size_t i = 0; i < models.size(); ++i)
    yaml += "  - {source_model: " + models[i] + ", positive_prompts: ['" + experts_prompts[i % 3] + "']}\n";
  return experts_recipe::parse(yaml).value();
}

std::vector<float> experts_floats(const io::archive& file, const std::string& name) {
  const io::tensor_info* t = file.find(name);
  REQUIRE(t != nullptr);
  REQUIRE(t->type == dtype::f32);
  std::vector<float> values(static_cast<std::size_t>(t->dims.elements()));
  REQUIRE(file.read(*t, 0, std::as_writable_bytes(std::span(values))));
  return values;
}

std::vector<std::byte> experts_bytes(const io::archive& file, const std::string& name) {
  const io::tensor_info* t = file.find(name);
  REQUIRE(t != nullptr);
  std::vector<std::byte> bytes(t->bytes);
  REQUIRE(file.read(*t, 0, bytes));
  return bytes;
}

}  // namespace

TEST_CASE("Experts: matrices of all models one after the other, the rest from the base", "[experts]") {
  const temp_folder folder;
  experts_models(folder);
  const io::archive made = mix_experts(experts_of({"b.gguf", "a.gguf", "c.gguf"}), folder.path()).value();
  CHECK(made.metadata().integer("llama.expert_count").value() == 3);
  CHECK(made.metadata().integer("llama.expert_used_count").value() == 2);
  CHECK(made.find("blk.1.ffn_up.weight") == nullptr);
  CHECK(made.find("blk.1.ffn_up_exps.weight")->dims == shape{3, 64, 32});
  CHECK(made.find("blk.1.ffn_down_exps.weight")->dims == shape{3, 32, 64});
  CHECK(made.find("blk.1.ffn_gate_inp.weight")->dims == shape{3, 32});
  for (const char* part : {"ffn_gate", "ffn_up", "ffn_down"}) {
    std::vector<std::byte> expected;
    for (const char* model : {"b.gguf", "a.gguf", "c.gguf"}) {
      const io::archive from = open_model_archive(folder / model).value();
      const auto one = experts_bytes(from, std::string("blk.2.") + part + ".weight");
      expected.insert(expected.end(), one.begin(), one.end());
    }
    CHECK(experts_bytes(made, std::string("blk.2.") + part + "_exps.weight") == expected);
  }
  const io::archive base = open_model_archive(folder / "a.gguf").value();
  CHECK(experts_bytes(made, "blk.0.attn_q.weight") == experts_bytes(base, "blk.0.attn_q.weight"));
  // The same as a file.
  REQUIRE(convert(made, folder / "mix.gguf"));
  const io::archive written = open_model_archive(folder / "mix.gguf").value();
  CHECK(experts_bytes(written, "blk.1.ffn_down_exps.weight") == experts_bytes(made, "blk.1.ffn_down_exps.weight"));
  CHECK(experts_floats(written, "blk.1.ffn_gate_inp.weight") == experts_floats(made, "blk.1.ffn_gate_inp.weight"));
}

TEST_CASE("Experts: a mixture of one model with itself is that model", "[experts]") {
  const temp_folder folder;
  experts_models(folder);
  const io::archive made = mix_experts(experts_of({"a.gguf", "a.gguf", "a.gguf"}), folder.path()).value();
  const io::archive other = mix_experts(experts_of({"b.gguf", "c.gguf"}), folder.path()).value();
  const std::vector<token_id> ids = {1, 100, 120, 280, 60, 261};
  const auto logits_of = [&](const io::archive& file) {
    session s = model::open(file).value().new_session().value();
    REQUIRE(s.prefill(ids));
    return std::vector<float>(s.logits().begin(), s.logits().end());
  };
  const std::vector<float> mixed = logits_of(made), alone = logits_of(open_model_archive(folder / "a.gguf").value()),
                           different = logits_of(other);
  double near = 0, far = 0;
  for (std::size_t i = 0; i < alone.size(); ++i) {
    near = std::max(near, std::abs(static_cast<double>(mixed[i] - alone[i])));
    far = std::max(far, std::abs(static_cast<double>(different[i] - alone[i])));
  }
  CHECK(near < 1e-3);
  CHECK(far > 0.05);
}

TEST_CASE("Experts: routers prefer an expert at its prompts by as much as is asked for", "[experts]") {
  const temp_folder folder;
  experts_models(folder);
  experts_options options;
  options.sharpness = 3;
  const io::archive made = mix_experts(experts_of({"a.gguf", "b.gguf", "c.gguf"}), folder.path(), options).value();
  const auto seen = std::make_shared<recording_observer>();
  model_options observed;
  observed.observer = seen;
  const model base = model::open(folder / "a.gguf", observed).value();
  std::vector<std::vector<std::vector<double>>> mean(3);  // [prompts][layers][cols]
  for (std::size_t k = 0; k < 3; ++k) {
    seen->rows.clear();
    session s = base.new_session().value();
    REQUIRE(s.score(base.tokenizer().encode(experts_prompts[k], {.add_special = true}).value()));
    for (std::int64_t l = 0; l < experts_layers; ++l)
      for (std::uint32_t p = 0; p < seen->points.size(); ++p)
        if (seen->points[p].weights[0] == "blk." + std::to_string(l) + ".ffn_gate.weight") {
          const std::vector<float>& x = seen->rows[{p, 0}];
          REQUIRE(x.size() % 32 == 0);
          std::vector<double>& to = mean[k].emplace_back(32);
          for (std::size_t i = 0; i < x.size(); ++i)
            to[i % 32] += static_cast<double>(x[i]) * 32 / static_cast<double>(x.size());
        }
    REQUIRE(mean[k].size() == experts_layers);
  }
  for (std::size_t l = 0; l < experts_layers; ++l) {
    const std::vector<float> w = experts_floats(made, "blk." + std::to_string(l) + ".ffn_gate_inp.weight");
    double margin = 0;
    for (std::size_t k = 0; k < 3; ++k) {
      double scores[3] = {}, middle = 0;
      for (std::size_t e = 0; e < 3; ++e)
        for (std::size_t c = 0; c < 32; ++c) scores[e] += static_cast<double>(w[e * 32 + c]) * mean[k][l][c];
      for (std::size_t c = 0; c < 32; ++c)
        middle += static_cast<double>(w[k * 32 + c]) * (mean[0][l][c] + mean[1][l][c] + mean[2][l][c]) / 3;
      CHECK(std::abs(middle) < 1e-3);  // no expert is preferred in the middle
      const double own = scores[k];
      scores[k] = -1e9;
      const double next = *std::max_element(scores, scores + 3);
      CHECK(own > next);
      margin += (own - next) / 3;
    }
    CHECK(margin == Approx(3).epsilon(1e-3));
  }
}

TEST_CASE("Experts: other gates, and what is wrong", "[experts]") {
  const temp_folder folder;
  experts_models(folder);
  for (const char* gate : {"cheap_embed", "random"}) {
    const io::archive made =
        mix_experts(experts_of({"b.gguf", "c.gguf"}, std::string("gate_mode: ") + gate + "\n"), folder.path()).value();
    const auto first = experts_floats(made, "blk.0.ffn_gate_inp.weight");
    CHECK(first == experts_floats(made, "blk.2.ffn_gate_inp.weight"));
    double norm = 0;
    for (std::size_t c = 0; c < 32; ++c) norm += static_cast<double>(first[c]) * static_cast<double>(first[c]);
    CHECK(std::sqrt(norm) == Approx(4).epsilon(1e-4));
  }
  const auto refused = [&](const std::string& yaml) {
    const auto parsed = experts_recipe::parse(yaml);
    if (!parsed) return parsed.error();
    const auto made = mix_experts(*parsed, folder.path());
    REQUIRE_FALSE(made);
    return made.error();
  };
  const std::string head = "base_model: a.gguf\nexperts:\n  - {source_model: b.gguf, positive_prompts: [xyz]}\n";
  CHECK(refused(head).where == "experts");
  CHECK(refused(head + "  - {source_model: c.gguf}\n").where == "c.gguf");
  CHECK(refused(head + "  - {source_model: c.gguf, positive_prompts: [a], weight: 1}\n").code == errc::unsupported);
  CHECK(refused("gate_mode: soft\n" + head).code == errc::malformed);
  CHECK(refused("experts_per_token: 3\n" + head + "  - {source_model: c.gguf, positive_prompts: [b]}\n").where ==
        "experts_per_token");
  write_tiny_model(folder / "wide.gguf", {.layers = experts_layers, .ffn = 96, .weights = dtype::f16});
  const error shapes = refused(head + "  - {source_model: wide.gguf, positive_prompts: [b]}\n");
  CHECK(shapes.where == "blk.0.ffn_gate.weight");
  CHECK(shapes.message.find("wide.gguf") != std::string::npos);
  CHECK(shapes.message.find("a.gguf") != std::string::npos);
  write_tiny_model(folder / "f32.gguf", {.layers = experts_layers});
  CHECK(refused(head + "  - {source_model: f32.gguf, positive_prompts: [b]}\n").message.find("types") !=
        std::string::npos);
  write_tiny_model(folder / "moe.gguf", {.layers = experts_layers, .experts = 2});
  CHECK(refused(head + "  - {source_model: moe.gguf, positive_prompts: [b]}\n").where == "blk.0.ffn_gate.weight");
}
