#include "kernels/registry.hpp"

#include <set>

#include "flywheel/formats/formats.hpp"
#include "kernel_test.hpp"

using namespace flywheel;
using namespace flywheel::kernels;

TEST_CASE("every cluster has every kernel", "[kernels][registry]") {
  for (std::size_t i = 0; i < std::size(cluster_names); ++i) {
    const kernel_set& set = select(static_cast<cluster>(i));
    CAPTURE(cluster_names[i]);
    CHECK(static_cast<std::size_t>(set.isa) == i);
    CHECK((set.rms_norm && set.add_rms_norm && set.layer_norm && set.rope && set.store_kv && set.attention_scratch &&
           set.attention && set.delta_net_scratch && set.delta_net && set.round_columns && set.glu && set.activate &&
           set.add && set.scaled_add && set.scale && set.f32_to_f16 && set.f32_to_q8 && set.int8_dots && set.f32_fmas &&
           set.bf16_dots && set.read_pass));
    for (const dtype_info& type : dtype_table) {
      CAPTURE(type.name);
      const bool decodes = formats::find_decoder(type.type) != nullptr;
      CHECK((find_to_f32(static_cast<cluster>(i), type.type) != nullptr) == decodes);
      const matmul_kernel* kernel = find_matmul(static_cast<cluster>(i), type.type);
      const bool weights = type.kind == dtype_kind::block || type.kind == dtype_kind::row || type.type == dtype::f32 ||
                           type.type == dtype::f16 || type.type == dtype::bf16 || type.type == dtype::f64;
      CHECK((kernel != nullptr) == (decodes && weights));
      if (kernel) CHECK(kernel->weight == type.type);
    }
  }
}

TEST_CASE("a cluster prefers its own lines, then its fallback's", "[kernels][registry]") {
  for (const matmul_kernel& kernel : all_matmul_kernels())
    if (formats::find_decoder(kernel.weight)) CHECK(find_matmul(kernel.isa, kernel.weight)->isa == kernel.isa);
  CHECK(find_cluster("generic") == cluster::generic);
  CHECK(find_cluster("no such cluster") == cluster::generic);
  for (const cluster isa : test::runnable_clusters()) CHECK(find_cluster(test::name_of(isa)) == isa);
}

TEST_CASE("activation scales choose among a cluster's lines, never another cluster's", "[kernels][registry]") {
  bool chosen = false;
  for (const matmul_kernel& kernel : all_matmul_kernels()) {
    if (!formats::find_decoder(kernel.weight)) continue;
    CAPTURE(kernel.name);
    const matmul_kernel* block = find_matmul(kernel.isa, kernel.weight, activation_scales::per_block);
    const matmul_kernel* power = find_matmul(kernel.isa, kernel.weight, activation_scales::power_of_two);
    CHECK(block->isa == kernel.isa);
    CHECK(power->isa == kernel.isa);
    if (kernel.prepared.name.starts_with("q8_power")) {
      CHECK(power == &kernel);
      CHECK(block->prepared.name.starts_with("q8_block"));
      chosen = true;
    }
  }
  const auto clusters = test::runnable_clusters();
  if (clusters.size() > 1) CHECK(chosen);  // every cluster but the generic one quantizes
}

TEST_CASE("kernel names are unique and say what they are", "[kernels][registry]") {
  std::set<std::string_view> names;
  for (const matmul_kernel& kernel : all_matmul_kernels()) {
    CHECK(names.insert(kernel.name).second);
    const std::string expected = "matmul_" + std::string(kernel.prepared.name) + "_";
    CHECK(kernel.name.substr(0, expected.size()) == expected);
    CHECK(kernel.prepared.isa == kernel.isa);
  }
}
