// Which tensors of a GGUF model stay in f32 whatever the model's type is, as every engine expects them, and the number
// by which a file says its type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "flywheel/core/dtype.hpp"

namespace flywheel::inline v0::detail {

/// Vectors, biases and scales, norms, routers, and what is read one element at a time.
[[nodiscard]] inline bool stays_f32(std::string_view name, std::size_t rank) noexcept {
  if (rank <= 1 || !name.ends_with(".weight") || name.ends_with("_norm.weight")) return true;
  for (const std::string_view kind : {"ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d.weight",
                                      "position_embd.weight", "token_types.weight"})
    if (name.ends_with(kind)) return true;
  return false;
}

/// general.file_type of a model whose matrices have this type (llama.h, LLAMA_FTYPE_*); none: the type has no number.
[[nodiscard]] std::optional<std::uint32_t> file_type_of(dtype type) noexcept;

}  // namespace flywheel::inline v0::detail
