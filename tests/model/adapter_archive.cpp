// Adapter files in one form, checked against their base.
#include "flywheel/model/adapter_archive.hpp"

#include <algorithm>
#include <limits>

#include "flywheel/model/open.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

const tiny_model base_of_tests = {.hidden = 16, .heads = 2, .kv_heads = 1, .ffn = 32, .vocabulary = false};

tiny_tensor filled(const std::string& name, const shape& dims, dtype type = dtype::f32) {
  tiny_tensor t{{name, type, dims, 0}, std::vector<float>(static_cast<std::size_t>(dims.elements()))};
  tiny_random random(name.size());
  for (float& x : t.values) x = random.normal();
  return t;
}

io::metadata adapter_metadata(float alpha = 8) {
  io::metadata meta;
  meta.set("general.type", std::string("adapter"));
  meta.set("general.architecture", std::string("llama"));
  meta.set("adapter.type", std::string("lora"));
  meta.set("adapter.lora.alpha", alpha);
  return meta;
}

/// A base and an adapter file beside it.
struct files {
  explicit files(const tiny_model& m = base_of_tests) {
    write_tiny_model(folder / "base.gguf", m);
    base = open_model_archive(folder / "base.gguf").value();
  }
  result<std::vector<adapter_change>> changes(const io::metadata& meta, const std::vector<tiny_tensor>& tensors) {
    write_tensors(folder / "a.gguf", meta, tensors);
    auto opened = open_adapter_archive(folder / "a.gguf", base);
    if (!opened) return std::move(opened).error();
    return adapter_changes(*opened, base);
  }
  error refused(const io::metadata& meta, const std::vector<tiny_tensor>& tensors) {
    auto made = changes(meta, tensors);
    REQUIRE_FALSE(made.has_value());
    return made.error();
  }

  temp_folder folder;
  io::archive base;
};

bool says(const error& e, std::string_view text) { return e.to_string().find(text) != std::string::npos; }

}  // namespace

TEST_CASE("adapter files of the conformance set fit their base", "[model]") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/adapters");
  const io::archive base = open_model_archive(folder / "base.gguf").value();
  struct expectation {
    const char* file;
    std::int64_t rank;
    double factor;
    std::vector<std::string> weights;
  };
  std::vector<std::string> attention;
  for (const char* layer : {"blk.0.", "blk.1."})
    for (const char* part : {"attn_q", "attn_k", "attn_v", "attn_output"})
      attention.push_back(std::string(layer) + part + ".weight");
  for (const expectation& e :
       {expectation{"adapter1.gguf", 16, 2, attention},
        {"adapter2.gguf",
         32,
         0.5,
         {"blk.0.attn_q.weight", "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"}}}) {
    const io::archive file = open_adapter_archive(folder / e.file, base).value();
    const auto changes = adapter_changes(file, base).value();
    std::vector<std::string> weights;
    for (const adapter_change& c : changes) {
      CHECK(c.what == adapter_change::kind::product);
      CHECK_FALSE(c.head);
      CHECK(c.rank == e.rank);
      CHECK(c.factor == e.factor);
      CHECK(c.a == c.weight + ".lora_a");
      CHECK(c.b == c.weight + ".lora_b");
      CHECK(c.magnitude.empty());
      weights.push_back(c.weight);
    }
    auto wanted = e.weights;
    std::sort(wanted.begin(), wanted.end());
    std::sort(weights.begin(), weights.end());
    CHECK(weights == wanted);
  }
}

TEST_CASE("adapters change products, embeddings, heads and whole tensors", "[model]") {
  const std::vector<tiny_tensor> tensors = {filled("token_embd.weight.lora_a", {320, 2}),
                                            filled("token_embd.weight.lora_b", {16, 2}),
                                            filled("output.weight.lora_a", {4, 16}),
                                            filled("output.weight.lora_b", {320, 4}, dtype::f16),
                                            filled("blk.0.attn_q.weight.lora_b", {16, 3}),
                                            filled("blk.0.attn_q.weight.lora_a", {3, 16}),
                                            filled("blk.0.attn_q.weight.lora_magnitude", {16}),
                                            filled("output_norm.weight", {16})};
  for (const bool tied : {true, false}) {
    tiny_model m = base_of_tests;
    m.tied = tied;
    files f(m);
    const auto changes = f.changes(adapter_metadata(), tensors).value();
    REQUIRE(changes.size() == 4);
    CHECK(changes[0].weight == "token_embd.weight");
    CHECK(changes[0].what == adapter_change::kind::embedding);
    CHECK_FALSE(changes[0].head);
    CHECK(changes[0].rank == 2);
    CHECK(changes[0].factor == 4);
    CHECK(changes[1].weight == (tied ? "token_embd.weight" : "output.weight"));
    CHECK(changes[1].what == adapter_change::kind::product);
    CHECK(changes[1].head);
    CHECK(changes[1].rank == 4);
    CHECK(changes[1].factor == 2);
    CHECK(changes[2].magnitude == "blk.0.attn_q.weight.lora_magnitude");
    CHECK(changes[2].factor == 8.0 / 3);
    CHECK(changes[3].what == adapter_change::kind::replace);
    CHECK(changes[3].weight == "output_norm.weight");
    CHECK(changes[3].a == "output_norm.weight");
  }
  files f;
  io::metadata without = adapter_metadata();
  without.erase("adapter.lora.alpha");
  for (const io::metadata& meta : {adapter_metadata(0), without}) {
    const auto changes = f.changes(meta, tensors).value();
    for (const adapter_change& change : changes) CHECK(change.factor == 1);
  }
}

TEST_CASE("factors of experts belong to their base", "[model]") {
  tiny_model m = base_of_tests;
  m.experts = 3;
  files f(m);
  const auto changes = f.changes(adapter_metadata(), {filled("blk.0.ffn_up_exps.weight.lora_a", {3, 2, 16}),
                                                      filled("blk.0.ffn_up_exps.weight.lora_b", {3, 32, 2})});
  CHECK(changes.value().at(0).rank == 2);
  CHECK(says(f.refused(adapter_metadata(), {filled("blk.0.ffn_up_exps.weight.lora_a", {2, 2, 16}),
                                            filled("blk.0.ffn_up_exps.weight.lora_b", {3, 32, 2})}),
             "asks for [3, 2, 16]"));
}

TEST_CASE("adapters that do not fit their base are refused with both files' names", "[model]") {
  files f;
  const tiny_tensor a = filled("blk.0.attn_q.weight.lora_a", {4, 16}),
                    b = filled("blk.0.attn_q.weight.lora_b", {16, 4});
  REQUIRE(f.changes(adapter_metadata(), {a, b}).has_value());

  struct refusal {
    const char* what;
    std::vector<tiny_tensor> tensors;
    errc code;
    std::string_view text;
  };
  const refusal refusals[] = {
      {"nothing", {}, errc::malformed, "changes nothing"},
      {"no b", {a}, errc::malformed, "lora_b, is missing"},
      {"no a", {b}, errc::malformed, "lora_a, is missing"},
      {"a magnitude alone",
       {filled("blk.0.attn_q.weight.lora_magnitude", {16})},
       errc::malformed,
       "factors are missing"},
      {"replaced and changed", {a, b, filled("blk.0.attn_q.weight", {16, 16})}, errc::malformed, "at the same time"},
      {"wider", {filled("blk.0.attn_q.weight.lora_a", {4, 24}), b}, errc::invalid_argument, "asks for [4, 16]"},
      {"taller", {a, filled("blk.0.attn_q.weight.lora_b", {24, 4})}, errc::invalid_argument, "asks for [16, 4]"},
      {"two ranks", {a, filled("blk.0.attn_q.weight.lora_b", {16, 5})}, errc::malformed, "which is 4"},
      {"vectors",
       {filled("blk.0.attn_norm.weight.lora_a", {4, 16}), filled("blk.0.attn_norm.weight.lora_b", {16, 4})},
       errc::invalid_argument,
       "is no matrix"},
      {"another layer",
       {filled("blk.7.attn_q.weight.lora_a", {4, 16}), filled("blk.7.attn_q.weight.lora_b", {16, 4})},
       errc::invalid_argument,
       "has no tensor 'blk.7.attn_q.weight'"},
      {"a magnitude of another length",
       {a, b, filled("blk.0.attn_q.weight.lora_magnitude", {8})},
       errc::invalid_argument,
       "asks for [16]"},
      {"an embedding as a product",
       {filled("token_embd.weight.lora_a", {2, 16}), filled("token_embd.weight.lora_b", {320, 2})},
       errc::invalid_argument,
       "asks for [320, 16]"},
      {"a whole of another shape", {filled("output_norm.weight", {8})}, errc::invalid_argument, "is [8]"},
  };
  for (const refusal& r : refusals) {
    INFO(r.what);
    const error e = f.refused(adapter_metadata(), r.tensors);
    INFO(e.to_string());
    CHECK(e.code == r.code);
    CHECK(says(e, r.text));
    CHECK(says(e, "a.gguf"));
    if (r.code == errc::invalid_argument) CHECK(says(e, "base.gguf"));
  }

  io::metadata other = adapter_metadata();
  other.set("general.architecture", std::string("qwen2"));
  CHECK(says(f.refused(other, {a, b}), "architecture 'qwen2'"));
  CHECK(says(f.refused(adapter_metadata(std::numeric_limits<float>::infinity()), {a, b}), "adapter.lora.alpha"));
  io::metadata vector = adapter_metadata();
  vector.set("adapter.type", std::string("control_vector"));
  CHECK(f.refused(vector, {a, b}).code == errc::unsupported);
  io::metadata activated = adapter_metadata();
  activated.set("adapter.alora.invocation_tokens", std::vector<std::uint32_t>{1});
  CHECK(f.refused(activated, {a, b}).code == errc::unsupported);
  CHECK(says(open_adapter_archive(f.folder / "base.gguf", f.base).error(), "no adapter"));
  CHECK(open_adapter_archive(f.folder / "absent", f.base).error().code == errc::not_found);
}
