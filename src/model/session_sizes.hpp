// What a session of given options takes, known before it exists.
#pragma once

#include <cstddef>

#include "flywheel/core/result.hpp"
#include "flywheel/model/session.hpp"
#include "src/model/engine.hpp"

namespace flywheel::inline v0::detail {

/// Tokens that a session of n_ctx = 0 holds at most.
inline constexpr std::int32_t default_n_ctx = 4096;

struct session_sizes {
  session_options options;      ///< As asked for, with defaults filled in and n_batch no larger than n_ctx.
  std::size_t kv_bytes = 0;     ///< When the context is full.
  std::size_t arena_bytes = 0;  ///< Workspace and two rows of logits: the current one and the one being computed.
};

/// Errors: unsupported for an encoder; invalid_argument, naming the option; out_of_memory when a size does not fit the address space.
[[nodiscard]] result<session_sizes> sizes_of(const engine& engine, const session_options& options);

}  // namespace flywheel::inline v0::detail
