// Which tensor of a model gets which type, by the named mixes that users of GGUF know.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "flywheel/core/dtype.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::quant {

/// What a tensor is for; decides how much its errors matter.
enum class tensor_kind : std::uint8_t {
  token_embd,
  output,
  attn_q,
  attn_k,
  attn_v,  ///< Also fused q, k and v, and the second half of a compressed k and v.
  attn_output,
  ffn_gate,
  ffn_up,
  ffn_down,
  other,
};
[[nodiscard]] tensor_kind kind_of(std::string_view name) noexcept;
[[nodiscard]] std::string_view to_string(tensor_kind kind) noexcept;
/// N of "blk.N."; -1 outside of layers.
[[nodiscard]] std::int64_t layer_of(std::string_view name) noexcept;

/// Whether tensors of this name are quantized at all: matrices, but for those that are small or read element by
/// element.
[[nodiscard]] bool may_quantize(const io::tensor_info& tensor) noexcept;
/// The type itself, or the next best one whose blocks fit rows of `cols`: what llama.cpp takes, but for Q2_K and Q3_K,
/// which become IQ4_NL instead of Q4_0. F16 when none fits.
[[nodiscard]] dtype fitting(dtype type, std::int64_t cols) noexcept;

struct mix {
  std::string_view name;
  dtype base;               ///< Of tensors that no rule names.
  dtype output;             ///< Of the head, or of the embedding that serves as one.
  dtype embedding;          ///< Of an embedding that does not.
  std::uint32_t file_type;  ///< general.file_type: llama.h, LLAMA_FTYPE_*.
};

[[nodiscard]] std::span<const mix> all_mixes() noexcept;
/// By name, upper or lower case; Q3_K, Q4_K and Q5_K are the medium ones. Null when there is none.
[[nodiscard]] const mix* find_mix(std::string_view name) noexcept;
/// The mix whose number says best that all tensors are of that type; null when there is none.
[[nodiscard]] const mix* pure_mix(dtype type) noexcept;

/// Numbers of a model that mixes ask for.
struct model_facts {
  std::int64_t layers = 0;
  std::int64_t shared_heads = 1;  ///< Query heads per kv head.
  std::int64_t experts = 0;
  bool tied = true;  ///< No output.weight.
  bool falcon = false;
  bool importance = false;                 ///< An importance matrix is at hand.
  std::vector<std::int64_t> value_layers;  ///< Layers with an attn_v, ascending.
};
/// Lenient: what the metadata do not say counts as none.
[[nodiscard]] model_facts facts_of(const io::archive& file, bool importance);

/// Of a tensor that may_quantize(), before fitting().
[[nodiscard]] dtype type_in_mix(const mix& m, const model_facts& facts, const io::tensor_info& tensor) noexcept;

}  // namespace flywheel::inline v0::quant
