// The kernels one ISA cluster uses: for each operation the best line of the family's kernels.inc that the cluster (or
// one below it in preference) provides, falling back to the generic one, which always exists.
#pragma once

#include <span>

#include "flywheel/core/dtype.hpp"
#include "flywheel/core/ops.hpp"
#include "kernels/activation/activation.hpp"
#include "kernels/attention/attention.hpp"
#include "kernels/cluster.hpp"
#include "kernels/codebook/codebook.hpp"
#include "kernels/convert/convert.hpp"
#include "kernels/delta_net/delta_net.hpp"
#include "kernels/feedback/feedback.hpp"
#include "kernels/low_rank/low_rank.hpp"
#include "kernels/matmul/matmul.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/quantize/quantize.hpp"
#include "kernels/roof/roof.hpp"
#include "kernels/rope/rope.hpp"

namespace flywheel::inline v0::kernels {

/// Immutable tables; all functions are thread-safe and never null.
struct kernel_set {
  cluster isa;
  rms_norm_fn rms_norm;
  add_rms_norm_fn add_rms_norm;
  layer_norm_fn layer_norm;
  rope_fn rope;
  store_kv_fn store_kv;
  attention_scratch_fn attention_scratch;
  attention_fn attention;
  delta_net_scratch_fn delta_net_scratch;
  delta_net_fn delta_net;
  round_columns_fn round_columns;
  project_fn project;
  expand_fn expand;
  glu_fn glu;
  activate_fn activate;
  add_fn add;
  scaled_add_fn scaled_add;
  scale_fn scale;
  softcap_fn softcap;
  codebook_terms_fn codebook_terms;
  codebook_least_fn codebook_least;
  codebook_nearest_fn codebook_nearest;
  ternary_least_fn ternary_least;
  f32_to_f16_fn f32_to_f16;
  f32_to_q8_fn f32_to_q8;
  quantize_fn quantize;
  int8_dots_fn int8_dots;
  f32_fmas_fn f32_fmas;
  bf16_dots_fn bf16_dots;
  read_pass_fn read_pass;
};

/// The set of a cluster that is built and that this CPU has (see detect_isa).
[[nodiscard]] const kernel_set& select(cluster isa) noexcept;
/// The cluster of a name from detect_isa; generic for an unknown name.
[[nodiscard]] cluster find_cluster(std::string_view name) noexcept;
/// The best product for weights of a format: the first line of the cluster in matmul/kernels.inc, or the first with
/// these activation scales where there is one. Null when the format has no codec.
[[nodiscard]] const matmul_kernel* find_matmul(cluster isa, dtype weight,
                                               activation_scales scales = activation_scales::automatic) noexcept;
/// Row decoder; null when the format has no codec.
[[nodiscard]] to_f32_fn find_to_f32(cluster isa, dtype type) noexcept;
/// Every line of matmul/kernels.inc that this build has, for tests and benchmarks.
[[nodiscard]] std::span<const matmul_kernel> all_matmul_kernels() noexcept;

}  // namespace flywheel::inline v0::kernels
