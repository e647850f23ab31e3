// Turns the lists kernels/*/kernels.inc into tables. Nothing here runs before it is called: all tables are constants.
#include "kernels/registry.hpp"

#include <array>
#include <cstddef>

#include "flywheel/formats/formats.hpp"
#include "kernels/declare.hpp"

namespace flywheel::inline v0::kernels {
namespace {

struct cluster_row {
  cluster fallback;
  bool built;
};

constexpr cluster_row clusters[] = {
#define FLYWHEEL_ISA(name, built, test) {cluster::FLYWHEEL_FALLBACK_##name, built},
#include "isa_table.inc"
#undef FLYWHEEL_ISA
};

constexpr const cluster_row& row(cluster isa) { return clusters[static_cast<std::size_t>(isa)]; }

/// Adds the lines of exactly one cluster.
constexpr void add_lines(kernel_set& set, cluster isa) {
#define FLYWHEEL_KERNEL(slot, name) FLYWHEEL_WHEN_##name(if (isa == cluster::name) set.slot = slot##_##name;)
#define FLYWHEEL_TO_F32(type, name)
#include "kernels/activation/kernels.inc"
#include "kernels/attention/kernels.inc"
#include "kernels/codebook/kernels.inc"
#include "kernels/convert/kernels.inc"
#include "kernels/delta_net/kernels.inc"
#include "kernels/feedback/kernels.inc"
#include "kernels/low_rank/kernels.inc"
#include "kernels/norm/kernels.inc"
#include "kernels/quantize/kernels.inc"
#include "kernels/roof/kernels.inc"
#include "kernels/rope/kernels.inc"
#undef FLYWHEEL_KERNEL
#undef FLYWHEEL_TO_F32
}

constexpr kernel_set build_set(cluster isa) {
  kernel_set set{};
  if (isa != cluster::generic) set = build_set(row(isa).fallback);
  set.isa = isa;
  add_lines(set, isa);
  return set;
}

template <std::size_t... I>
constexpr std::array<kernel_set, sizeof...(I)> build_sets(std::index_sequence<I...>) {
  return {build_set(static_cast<cluster>(I))...};
}
constexpr auto sets = build_sets(std::make_index_sequence<std::size(clusters)>());

constexpr std::int32_t prepared_zero(std::string_view activations, dtype weight) {
  return activations.starts_with("q8") ? zero_point(weight) : 0;
}

constexpr matmul_kernel matmuls[] = {
#define FLYWHEEL_MATMUL_ROW(kernel, activations, type, rows, cols, name)          \
  {#kernel,                                                                       \
   dtype::type,                                                                   \
   cluster::name,                                                                 \
   {#activations, cluster::name, rows, prepared_zero(#activations, dtype::type)}, \
   cols,                                                                          \
   kernel::panel_bytes,                                                           \
   kernel::pack,                                                                  \
   kernel::prepared_bytes,                                                        \
   kernel::prepare,                                                               \
   kernel::run},
#define FLYWHEEL_MATMUL(activations, type, rows, cols, name)                                                      \
  FLYWHEEL_WHEN_##name(FLYWHEEL_MATMUL_ROW(matmul_##activations##_##type##_##rows##x##cols##_##name, activations, \
                                           type, rows, cols, name))
#include "kernels/matmul/kernels.inc"
#undef FLYWHEEL_MATMUL
#undef FLYWHEEL_MATMUL_ROW
};

struct to_f32_row {
  dtype type;
  cluster isa;
  to_f32_fn convert;
};

constexpr to_f32_row to_f32s[] = {
#define FLYWHEEL_KERNEL(slot, name)
#define FLYWHEEL_TO_F32(type, name) FLYWHEEL_WHEN_##name({dtype::type, cluster::name, to_f32_##type##_##name}, )
#include "kernels/convert/kernels.inc"
#undef FLYWHEEL_KERNEL
#undef FLYWHEEL_TO_F32
};

/// The first row that `matches`, of the cluster itself or the nearest of its fallbacks.
template <class Table, class Matches>
constexpr auto find_row(const Table& table, cluster isa, Matches matches) -> decltype(&table[0]) {
  for (;; isa = row(isa).fallback) {
    for (const auto& candidate : table)
      if (candidate.isa == isa && matches(candidate)) return &candidate;
    if (isa == cluster::generic) return nullptr;
  }
}

}  // namespace

const kernel_set& select(cluster isa) noexcept { return sets[static_cast<std::size_t>(isa)]; }

cluster find_cluster(std::string_view name) noexcept {
  for (std::size_t i = 0; i < std::size(cluster_names); ++i)
    if (cluster_names[i] == name && clusters[i].built) return static_cast<cluster>(i);
  return cluster::generic;
}

const matmul_kernel* find_matmul(cluster isa, dtype weight, activation_scales scales) noexcept {
  const matmul_kernel* found = find_row(matmuls, isa, [&](const matmul_kernel& k) { return k.weight == weight; });
  if (found && scales != activation_scales::automatic) {
    const std::string_view prefix = scales == activation_scales::per_block ? "q8_block" : "q8_power";
    for (const matmul_kernel& k : matmuls)
      if (k.isa == found->isa && k.weight == weight && k.prepared.name.starts_with(prefix)) found = &k;
  }
  // Kernels that decode through the reference codec are of no use without one; the others cover formats that have one.
  return found && (weight == dtype::f32 || formats::find_decoder(weight)) ? found : nullptr;
}

to_f32_fn find_to_f32(cluster isa, dtype type) noexcept {
  const to_f32_row* found = find_row(to_f32s, isa, [&](const to_f32_row& r) { return r.type == type; });
  return found ? found->convert : formats::find_decoder(type);
}

std::span<const matmul_kernel> all_matmul_kernels() noexcept { return matmuls; }

}  // namespace flywheel::inline v0::kernels
