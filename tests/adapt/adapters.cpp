// Adapters put into weights, taken out of models, combined, written and read again.
#include "flywheel/adapt/adapters.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>

#include "flywheel/model/adapter_archive.hpp"
#include "flywheel/model/open.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

std::vector<float> floats_of(const io::archive& file, const std::string& name) {
  const io::tensor_info* t = file.find(name);
  INFO(name);
  REQUIRE(t != nullptr);
  std::vector<std::byte> bytes(t->bytes);
  file.read(*t, 0, bytes).value();
  std::vector<float> values(static_cast<std::size_t>(t->dims.elements()));
  formats::decode(tensor_view(t->type, t->dims, bytes.data()), values).value();
  return values;
}

void check_equal_adapters(const io::archive& one, const io::archive& other) {
  CHECK(one.tensors().size() == other.tensors().size());
  for (const io::tensor_info& t : one.tensors()) {
    INFO(t.name);
    const io::tensor_info* same = other.find(t.name);
    REQUIRE(same != nullptr);
    CHECK(same->type == t.type);
    CHECK(same->dims == t.dims);
    CHECK(floats_of(one, t.name) == floats_of(other, t.name));
  }
  CHECK(one.metadata().number("adapter.lora.alpha").value() == other.metadata().number("adapter.lora.alpha").value());
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0, all = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    all += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(sum / all);
}

tiny_tensor random_tensor(const std::string& name, const shape& dims, float center = 0) {
  tiny_tensor t{{name, dtype::f32, dims, 0}, std::vector<float>(static_cast<std::size_t>(dims.elements()))};
  tiny_random random(name.size() * 7 + 1);
  for (float& x : t.values) x = center + random.normal() * 0.1F;
  return t;
}

/// A tiny model and an adapter with all kinds of changes.
struct tiny_pair {
  explicit tiny_pair(bool dora = true, bool whole = true, std::int64_t q_rank = 3) {
    tiny_model m{.hidden = 16, .heads = 2, .kv_heads = 1, .ffn = 32, .vocabulary = false};
    write_tiny_model(folder / "base.gguf", m);
    base = open_model_archive(folder / "base.gguf").value();
    io::metadata meta;
    meta.set("general.type", std::string("adapter"));
    meta.set("general.architecture", std::string("llama"));
    meta.set("adapter.type", std::string("lora"));
    meta.set("adapter.lora.alpha", 6.0F);
    std::vector<tiny_tensor> t = {random_tensor("token_embd.weight.lora_a", {320, 2}),
                                  random_tensor("token_embd.weight.lora_b", {16, 2}),
                                  random_tensor("blk.0.attn_q.weight.lora_a", {q_rank, 16}),
                                  random_tensor("blk.0.attn_q.weight.lora_b", {16, q_rank}),
                                  random_tensor("blk.0.ffn_up.weight.lora_a", {2, 16}),
                                  random_tensor("blk.0.ffn_up.weight.lora_b", {32, 2})};
    if (dora) t.push_back(random_tensor("blk.0.attn_q.weight.lora_magnitude", {16}, 1));
    if (whole) t.push_back(random_tensor("output_norm.weight", {16}, 1));
    write_tensors(folder / "a.gguf", meta, t);
    adapter = open_adapter_archive(folder / "a.gguf", base).value();
  }
  temp_folder folder;
  io::archive base, adapter;
};

}  // namespace

TEST_CASE("adapters in weights are the conformance set's merged weights", "[adapt]") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/adapters");
  const io::archive base = open_model_archive(folder / "base.gguf").value();
  nlohmann::json index;
  std::ifstream(folder / "index.json") >> index;
  int compared = 0;
  for (const auto& one : index["cases"]) {
    if (!one.contains("merged")) continue;
    std::vector<adapt::scaled_adapter> uses;
    for (const auto& use : one["adapters"])
      uses.push_back({open_adapter_archive(folder / (use["adapter"].get<std::string>() + ".gguf"), base).value(),
                      use["scale"].get<float>()});
    const io::archive merged = adapt::apply_adapters(base, uses).value();
    CHECK(merged.tensors().size() == base.tensors().size());
    for (const auto& [name, facts] : one["merged"].items()) {
      INFO(one["name"] << " " << name);
      const std::vector<float> w = floats_of(merged, name);
      double sum = 0, squares = 0;
      for (const float x : w) sum += static_cast<double>(x), squares += static_cast<double>(x) * static_cast<double>(x);
      const double l2 = facts["l2"];
      CHECK(std::abs(sum - facts["sum"].get<double>()) < 1e-5 * l2 * std::sqrt(static_cast<double>(w.size())));
      CHECK(std::sqrt(squares) == Approx(l2).epsilon(1e-5));
      for (std::size_t i = 0; i < 4; ++i) CHECK(std::abs(w[i] - facts["first4"][i].get<double>()) < 1e-5);
      CHECK(std::abs(w.back() - facts["last"].get<double>()) < 1e-5);
      ++compared;
    }
  }
  CHECK(compared > 8);
}

TEST_CASE("adapters in weights: products, DoRA, embeddings, whole tensors", "[adapt]") {
  const tiny_pair p;
  const std::vector<adapt::scaled_adapter> uses = {{p.adapter, 0.5F}};
  const io::archive merged = adapt::apply_adapters(p.base, uses).value();
  const auto w = floats_of(p.base, "blk.0.attn_q.weight"), a = floats_of(p.adapter, "blk.0.attn_q.weight.lora_a"),
             b = floats_of(p.adapter, "blk.0.attn_q.weight.lora_b"),
             m = floats_of(p.adapter, "blk.0.attn_q.weight.lora_magnitude"),
             q = floats_of(merged, "blk.0.attn_q.weight");
  for (std::size_t r = 0; r < 16; ++r) {
    double v[16], norm = 0;
    for (std::size_t c = 0; c < 16; ++c) {
      double d = 0;
      for (std::size_t j = 0; j < 3; ++j) d += static_cast<double>(b[r * 3 + j]) * static_cast<double>(a[j * 16 + c]);
      v[c] = static_cast<double>(w[r * 16 + c]) + 2 * d;  // alpha 6, rank 3
      norm += v[c] * v[c];
    }
    for (std::size_t c = 0; c < 16; ++c) {
      const double full = static_cast<double>(m[r]) * v[c] / std::sqrt(norm), was = static_cast<double>(w[r * 16 + c]);
      CHECK(q[r * 16 + c] == Approx(was + 0.5 * (full - was)).margin(1e-6));
    }
  }
  // The head was tied: tokens' rows change, the head stays as it was.
  const auto rows = floats_of(merged, "token_embd.weight"), old = floats_of(p.base, "token_embd.weight"),
             ea = floats_of(p.adapter, "token_embd.weight.lora_a"),
             eb = floats_of(p.adapter, "token_embd.weight.lora_b");
  CHECK(floats_of(merged, "output.weight") == old);
  for (const std::size_t token : {0U, 100U, 319U})
    for (std::size_t c = 0; c < 16; ++c)
      CHECK(rows[token * 16 + c] ==
            Approx(old[token * 16 + c] + 0.5F * 3 * (ea[token * 2] * eb[c * 2] + ea[token * 2 + 1] * eb[c * 2 + 1]))
                .margin(1e-6));
  const auto norm = floats_of(merged, "output_norm.weight"), norm0 = floats_of(p.base, "output_norm.weight"),
             norm1 = floats_of(p.adapter, "output_norm.weight");
  CHECK(norm[3] == Approx(0.5F * (norm0[3] + norm1[3])));

  const std::vector<adapt::scaled_adapter> whole = {{p.adapter, 1.0F}}, none = {{p.adapter, 0.0F}};
  CHECK(floats_of(adapt::apply_adapters(p.base, whole).value(), "output_norm.weight") == norm1);
  const io::archive same = adapt::apply_adapters(p.base, none).value();
  CHECK(same.tensors().size() == p.base.tensors().size());
  const std::vector<adapt::scaled_adapter> infinite = {{p.adapter, std::numeric_limits<float>::infinity()}};
  CHECK(adapt::apply_adapters(p.base, infinite).error().code == errc::invalid_argument);
}

TEST_CASE("an adapter merged into a file comes out again", "[adapt]") {
  const tiny_pair p(false, false);
  const std::vector<adapt::scaled_adapter> in = {{p.adapter, 1.0F}}, out = {{p.adapter, -1.0F}};
  const auto done = adapt::merge_adapters(p.base, in, p.folder / "merged.gguf").value();
  CHECK(done.changed == 3);
  const io::archive merged = open_model_archive(p.folder / "merged.gguf").value();
  CHECK(merged.find("blk.0.attn_q.weight")->type == p.base.find("blk.0.attn_q.weight")->type);
  CHECK(distance(floats_of(merged, "blk.0.ffn_up.weight"), floats_of(p.base, "blk.0.ffn_up.weight")) > 0.01);
  adapt::merge_adapters(merged, out, p.folder / "unmerged.gguf").value();
  const io::archive unmerged = open_model_archive(p.folder / "unmerged.gguf").value();
  for (const io::tensor_info& t : p.base.tensors())
    CHECK(distance(floats_of(unmerged, t.name), floats_of(p.base, t.name)) < 1e-6);
  adapt::merge_adapters_options small;
  small.type = dtype::q8_0;
  adapt::merge_adapters(p.base, in, p.folder / "small.gguf", small).value();
  const io::archive q8 = open_model_archive(p.folder / "small.gguf").value();
  CHECK(q8.find("blk.0.ffn_up.weight")->type == dtype::f16);  // rows of 16 are no blocks of 32
  CHECK(distance(floats_of(q8, "blk.0.ffn_up.weight"), floats_of(merged, "blk.0.ffn_up.weight")) < 1e-3);
  CHECK(adapt::merge_adapters(p.base, in, p.folder / "base.gguf").error().code == errc::invalid_argument);
}

TEST_CASE("written adapters are the same when they are read again", "[adapt]") {
  for (const bool dora : {true, false}) {
    const tiny_pair p(dora, dora);
    write_adapter(p.adapter, p.base, p.folder / "again.gguf").value();
    check_equal_adapters(p.adapter, open_adapter_archive(p.folder / "again.gguf", p.base).value());
    write_adapter(p.adapter, p.base, p.folder / "peft").value();
    const io::archive peft = open_adapter_archive(p.folder / "peft", p.base).value();
    check_equal_adapters(p.adapter, peft);
    CHECK(write_adapter(p.adapter, p.base, p.folder / "peft").error().code == errc::invalid_argument);
  }
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/adapters");
  const io::archive base = open_model_archive(folder / "base.gguf").value();
  const temp_folder out;
  for (const std::string name : {"adapter1", "adapter2"}) {
    const io::archive file = open_adapter_archive(folder / (name + ".gguf"), base).value();
    write_adapter(file, base, out / name).value();
    check_equal_adapters(file, open_adapter_archive(out / name, base).value());
    // The publisher's folder and ours hold the same tensors.
    const io::archive ours = io::archive::open(out / (name + "/adapter_model.safetensors")).value();
    const io::archive theirs = io::archive::open(folder / (name + "_peft/adapter_model.safetensors")).value();
    CHECK(ours.tensors().size() == theirs.tensors().size());
    for (const io::tensor_info& t : theirs.tensors()) CHECK(floats_of(ours, t.name) == floats_of(theirs, t.name));
  }
}

TEST_CASE("differences of low rank are extracted to rounding, others to their tail", "[adapt]") {
  const tiny_pair p(false, false, 3);
  const std::vector<adapt::scaled_adapter> uses = {{p.adapter, 1.0F}};
  const io::archive tuned = adapt::apply_adapters(p.base, uses).value();
  adapt::extract_options o;
  o.rank = 4;
  o.type = dtype::f32;
  const adapt::extracted_adapter made = adapt::extract_adapter(p.base, tuned, o).value();
  REQUIRE(made.tensors.size() == 2);
  CHECK(made.error < 1e-4);
  CHECK(made.left_out == std::vector<std::string>{"token_embd.weight", "output.weight"});
  const std::vector<adapt::scaled_adapter> again = {{made.adapter, 1.0F}};
  const io::archive back = adapt::apply_adapters(p.base, again).value();
  for (const char* name : {"blk.0.attn_q.weight", "blk.0.ffn_up.weight"})
    CHECK(distance(floats_of(back, name), floats_of(tuned, name)) < 1e-5);

  o.energy = 1 - 1e-6;
  const adapt::extracted_adapter least = adapt::extract_adapter(p.base, tuned, o).value();
  CHECK(least.tensors[0].rank == 3);
  CHECK(least.tensors[1].rank == 2);

  // Rank 1 of rank 2: what is left is the second singular value, known from the factors' products.
  o.energy.reset();
  o.rank = 1;
  o.pattern = "ffn_up";
  const adapt::extracted_adapter one = adapt::extract_adapter(p.base, tuned, o).value();
  REQUIRE(one.tensors.size() == 1);
  const auto a = floats_of(p.adapter, "blk.0.ffn_up.weight.lora_a"),
             b = floats_of(p.adapter, "blk.0.ffn_up.weight.lora_b");
  double aa[3] = {}, bb[3] = {};  // 2 x 2, symmetric: A A^T and B^T B
  for (std::size_t c = 0; c < 16; ++c)
    for (const auto& [at, i, j] : {std::tuple{0, 0, 0}, std::tuple{1, 0, 1}, std::tuple{2, 1, 1}})
      aa[at] += static_cast<double>(a[static_cast<std::size_t>(i) * 16 + c]) *
                static_cast<double>(a[static_cast<std::size_t>(j) * 16 + c]);
  for (std::size_t r = 0; r < 32; ++r)
    for (const auto& [at, i, j] : {std::tuple{0, 0, 0}, std::tuple{1, 0, 1}, std::tuple{2, 1, 1}})
      bb[at] += static_cast<double>(b[r * 2 + static_cast<std::size_t>(i)]) *
                static_cast<double>(b[r * 2 + static_cast<std::size_t>(j)]);
  const double trace = aa[0] * bb[0] + 2 * aa[1] * bb[1] + aa[2] * bb[2];
  const double det = (aa[0] * aa[2] - aa[1] * aa[1]) * (bb[0] * bb[2] - bb[1] * bb[1]);
  const double second = trace / 2 - std::sqrt(trace * trace / 4 - det);
  CHECK(one.error == Approx(std::sqrt(second / trace)).epsilon(1e-3));

  o.rank = 0;
  CHECK(adapt::extract_adapter(p.base, tuned, o).error().code == errc::invalid_argument);
  CHECK(adapt::extract_adapter(p.base, p.base, {}).error().code == errc::invalid_argument);
}

TEST_CASE("adapters are combined exactly, and compressed", "[adapt]") {
  const tiny_pair p(false, false, 3), other(false, false, 2);
  const std::vector<adapt::scaled_adapter> uses = {{p.adapter, 0.75F}, {other.adapter, -0.5F}};
  const io::archive wanted = adapt::apply_adapters(p.base, uses).value();
  const auto check_sum = [&](const adapt::combine_options& o, double most) {
    const adapt::extracted_adapter made = adapt::combine_adapters(p.base, uses, o).value();
    const std::vector<adapt::scaled_adapter> use = {{made.adapter, 1.0F}};
    const io::archive merged = adapt::apply_adapters(p.base, use).value();
    for (const char* name : {"token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_up.weight"})
      CHECK(distance(floats_of(merged, name), floats_of(wanted, name)) < most);
    return made;
  };
  adapt::combine_options o;
  CHECK(check_sum(o, 1e-6).tensors[1].rank == 5);
  o.how = adapt::combination::svd;
  o.rank = 5;
  CHECK(check_sum(o, 1e-5).error < 1e-4);
  o.rank = 1;
  CHECK(adapt::combine_adapters(p.base, uses, o).value().error > 1e-3);
  o.how = adapt::combination::linear;
  CHECK(adapt::combine_adapters(p.base, uses, o).error().code == errc::invalid_argument);  // ranks differ
  const std::vector<adapt::scaled_adapter> twice = {{p.adapter, 0.25F}, {p.adapter, 0.25F}};
  const adapt::extracted_adapter sum = adapt::combine_adapters(p.base, twice, o).value();
  // (2 sqrt(s) A)(2 sqrt(s) B) = 4 s B A: the cross terms come along.
  const std::vector<adapt::scaled_adapter> full = {{p.adapter, 1.0F}}, made = {{sum.adapter, 1.0F}};
  CHECK(distance(floats_of(adapt::apply_adapters(p.base, made).value(), "blk.0.attn_q.weight"),
                 floats_of(adapt::apply_adapters(p.base, full).value(), "blk.0.attn_q.weight")) < 1e-6);
  for (const auto how : {adapt::combination::ties, adapt::combination::dare_linear, adapt::combination::dare_ties}) {
    o.how = how;
    o.rank = 16;
    o.density = 1;
    const std::vector<adapt::scaled_adapter> single = {{p.adapter, 1.0F}};
    const adapt::extracted_adapter same = adapt::combine_adapters(p.base, single, o).value();
    const std::vector<adapt::scaled_adapter> use = {{same.adapter, 1.0F}};
    CHECK(distance(floats_of(adapt::apply_adapters(p.base, use).value(), "blk.0.attn_q.weight"),
                   floats_of(adapt::apply_adapters(p.base, full).value(), "blk.0.attn_q.weight")) < 1e-5);
  }
  const tiny_pair dora;
  const std::vector<adapt::scaled_adapter> bad = {{dora.adapter, 1.0F}};
  CHECK(adapt::combine_adapters(dora.base, bad, {}).error().code == errc::invalid_argument);
}
