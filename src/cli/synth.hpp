// Random-weight models of known shapes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "cli/terminal.hpp"
#include "flywheel/core/dtype.hpp"

namespace flywheel::cli {

struct model_shape {
  const char* name;
  const char* architecture;
  std::int32_t hidden, layers, heads, kv_heads, head_dim, ffn, vocab, context;
  float rope_base;
  std::int32_t experts, experts_used;
  bool tied;
};

/// Null when there is none of that name.
[[nodiscard]] const model_shape* find_model_shape(std::string_view name) noexcept;
/// "tinyllama-1.1b, llama-3.2-1b, ..."
[[nodiscard]] std::string model_shape_names();
/// The type of that name. Throws usage_error naming `option` when models of this shape cannot be made of it.
[[nodiscard]] dtype synthetic_type(const std::string& name, const model_shape& shape, const std::string& option);
/// Writes a GGUF file and returns the number of parameters. Draws a progress bar. Throws.
std::int64_t write_synthetic(const model_shape& shape, dtype type, const std::string& path, std::uint64_t seed,
                             const interrupt& stop);

}  // namespace flywheel::cli
