// What the two containers' writers have in common: each checks the plan, writes its header, and says how long the
// tensors are and how they are padded.
#pragma once

#include <cstdint>
#include <span>

#include "flywheel/io/writer.hpp"
#include "src/io/output_file.hpp"

namespace flywheel::inline v0::io::detail {

struct layout {
  std::vector<std::uint64_t> bytes;  ///< Of each tensor, without padding.
  std::uint64_t alignment = 1;       ///< After each tensor, zeros up to a multiple of this.
};

/// Both check everything before they write anything. Errors as writer::create.
[[nodiscard]] result<layout> write_gguf_header(output_file& out, const metadata& meta,
                                               std::span<const tensor_plan> tensors);
[[nodiscard]] result<layout> write_safetensors_header(output_file& out, const metadata& meta,
                                                      std::span<const tensor_plan> tensors);

}  // namespace flywheel::inline v0::io::detail
