// Named mixes: how many tensors of a model get which type, as files of well-known models show it, and single rules.
#include "src/quant/mixes.hpp"

#include <map>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace {

using namespace flywheel;
using namespace flywheel::quant;

io::tensor_info matrix(std::string name, std::int64_t rows = 4096, std::int64_t cols = 4096) {
  io::tensor_info t;
  t.name = std::move(name);
  t.type = dtype::f16;
  t.dims = {rows, cols};
  return t;
}

std::vector<io::tensor_info> llama(std::int64_t layers, bool tied = false) {
  std::vector<io::tensor_info> all = {matrix("token_embd.weight")};
  for (std::int64_t i = 0; i < layers; ++i)
    for (const char* part : {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"})
      all.push_back(matrix("blk." + std::to_string(i) + "." + part + ".weight"));
  if (!tied) all.push_back(matrix("output.weight"));
  return all;
}

model_facts facts(std::int64_t layers, std::int64_t shared_heads, bool importance = false) {
  model_facts f;
  f.layers = layers;
  f.shared_heads = shared_heads;
  f.tied = false;
  f.importance = importance;
  for (std::int64_t i = 0; i < layers; ++i) f.value_layers.push_back(i);
  return f;
}

std::map<std::string, int> counts(const char* name, const model_facts& f) {
  const mix* m = find_mix(name);
  REQUIRE(m != nullptr);
  std::map<std::string, int> found;
  for (const io::tensor_info& t : llama(f.layers, f.tied)) ++found[std::string(to_string(type_in_mix(*m, f, t)))];
  return found;
}

using table = std::map<std::string, int>;

TEST_CASE("Mixes of a 32-layer llama have the counts of published files") {
  const model_facts plain = facts(32, 1);  // 7 B: every head has keys and values of its own
  CHECK(counts("Q4_0", plain) == table{{"Q4_0", 225}, {"Q6_K", 1}});
  CHECK(counts("Q8_0", plain) == table{{"Q8_0", 226}});
  CHECK(counts("Q3_K_S", plain) == table{{"Q3_K", 225}, {"Q6_K", 1}});
  CHECK(counts("Q3_K_M", plain) == table{{"Q3_K", 129}, {"Q4_K", 92}, {"Q5_K", 4}, {"Q6_K", 1}});
  CHECK(counts("Q3_K_L", plain) == table{{"Q3_K", 129}, {"Q5_K", 96}, {"Q6_K", 1}});
  CHECK(counts("Q4_K_S", plain) == table{{"Q4_K", 217}, {"Q5_K", 8}, {"Q6_K", 1}});
  CHECK(counts("Q4_K_M", plain) == table{{"Q4_K", 193}, {"Q6_K", 33}});
  CHECK(counts("Q5_K_S", plain) == table{{"Q5_K", 225}, {"Q6_K", 1}});
  CHECK(counts("Q5_K_M", plain) == table{{"Q5_K", 193}, {"Q6_K", 33}});
  CHECK(counts("Q6_K", plain) == table{{"Q6_K", 226}});

  const model_facts grouped = facts(32, 4, true);  // 8 B: four query heads share a key head
  CHECK(counts("Q2_K", grouped) == table{{"Q2_K", 129}, {"Q3_K", 64}, {"Q4_K", 32}, {"Q6_K", 1}});
  CHECK(counts("IQ4_XS", grouped) == table{{"IQ4_XS", 193}, {"Q5_K", 32}, {"Q6_K", 1}});
  CHECK(counts("IQ3_XS", grouped) == table{{"IQ3_S", 81}, {"IQ3_XXS", 112}, {"Q4_K", 32}, {"Q6_K", 1}});
  CHECK(counts("IQ2_M", grouped) == table{{"IQ2_S", 156}, {"IQ3_S", 37}, {"Q4_K", 32}, {"Q5_K", 1}});
  CHECK(counts("IQ2_XXS", grouped) == table{{"IQ2_XXS", 188}, {"Q2_K", 5}, {"Q4_K", 32}, {"Q5_K", 1}});
  CHECK(counts("Q4_0", grouped) == table{{"Q4_0", 221}, {"Q4_1", 4}, {"Q6_K", 1}});
}

TEST_CASE("More bits go to the first and last eighth, and to every third layer between") {
  const model_facts f = facts(32, 1);
  const mix& m = *find_mix("q4_k_m");
  for (std::int64_t i = 0; i < 32; ++i) {
    const bool more = i < 4 || i >= 28 || (i >= 4 && (i - 4) % 3 == 2);
    CHECK((type_in_mix(m, f, matrix("blk." + std::to_string(i) + ".ffn_down.weight")) == dtype::q6_k) == more);
  }
}

TEST_CASE("Mixes look at experts, tied embeddings and odd rows") {
  model_facts f = facts(32, 4);
  const mix& m = *find_mix("Q4_K_M");
  f.experts = 8;
  CHECK(type_in_mix(m, f, matrix("blk.9.attn_v.weight")) == dtype::q8_0);
  CHECK(type_in_mix(m, f, matrix("blk.9.attn_k.weight")) == dtype::q8_0);
  CHECK(type_in_mix(m, f, matrix("blk.9.attn_output.weight")) == dtype::q5_k);
  CHECK(type_in_mix(*find_mix("MXFP4_MOE"), f, matrix("blk.9.attn_q.weight")) == dtype::q8_0);
  f.tied = true;
  CHECK(type_in_mix(m, f, matrix("token_embd.weight")) == dtype::q6_k);
  f.tied = false;
  CHECK(type_in_mix(m, f, matrix("token_embd.weight")) == dtype::q4_k);
  CHECK(type_in_mix(m, f, matrix("output.weight", 100, 96)) == dtype::q8_0);

  CHECK(fitting(dtype::q4_k, 512) == dtype::q4_k);
  CHECK(fitting(dtype::q4_k, 96) == dtype::q5_0);
  CHECK(fitting(dtype::q5_k, 96) == dtype::q5_1);
  CHECK(fitting(dtype::q6_k, 96) == dtype::q8_0);
  for (const dtype type : {dtype::q2_k, dtype::q3_k, dtype::iq4_xs, dtype::iq2_s})
    CHECK(fitting(type, 96) == dtype::iq4_nl);
  CHECK(fitting(dtype::q8_0, 20) == dtype::f16);
  CHECK(fitting(dtype::q8_g128, 20) == dtype::q8_channel);
}

TEST_CASE("Names of mixes, kinds and layers") {
  CHECK(find_mix("Q4_K") == find_mix("Q4_K_M"));
  CHECK(find_mix("iq3_xs") != nullptr);
  CHECK(find_mix("Q4_K_X") == nullptr);
  CHECK(find_mix("") == nullptr);
  for (const mix& m : all_mixes()) CHECK(find_mix(m.name)->file_type == m.file_type);
  CHECK(pure_mix(dtype::q4_k)->file_type == 14);
  CHECK(pure_mix(dtype::q2_k)->file_type == 10);
  CHECK(pure_mix(dtype::q8_channel) == nullptr);
  CHECK(kind_of("blk.3.ffn_down_exps.weight") == tensor_kind::ffn_down);
  CHECK(kind_of("blk.3.attn_qkv.weight") == tensor_kind::attn_v);
  CHECK(layer_of("blk.17.attn_q.weight") == 17);
  CHECK(layer_of("output.weight") == -1);
  CHECK_FALSE(may_quantize(matrix("blk.0.ffn_gate_inp.weight")));
  CHECK_FALSE(may_quantize(matrix("blk.0.attn_norm.weight")));
  CHECK(may_quantize(matrix("blk.0.ffn_gate_exps.weight")));
}

}  // namespace
