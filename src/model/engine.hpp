// What sessions need from a compiled model: run one chunk of tokens. The boundary between sessions (tokens, cache,
// sampling) and graphs (what is computed, by whom).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>

#include "flywheel/core/result.hpp"
#include "flywheel/text/tokenizer.hpp"
#include "src/model/kv_layout.hpp"

namespace flywheel::inline v0::detail {

class kv_cache;

/// Consecutive tokens of one sequence, at the positions behind those of its cache.
struct chunk_part {
  std::int64_t n_tokens = 0;  ///< At least 1.
  kv_cache* cache = nullptr;  ///< Writable rows for all of them exist: kv_cache::reserve. No cache comes twice.
};

/// One forward pass. Tokens of a sequence see each other causally, and every position already in their cache; those of
/// different sequences do not see each other. All caches hold the same type of numbers.
struct chunk {
  std::span<const token_id> ids;              ///< [n_tokens] of all sequences; not empty, ids in range.
  std::span<const chunk_part> parts;          ///< Their n_tokens add up to ids.size().
  std::span<const std::int32_t> output_rows;  ///< Which of the tokens need outputs, ascending; may be empty.
  bool hidden = false;                        ///< Outputs are hidden states after the final norm, else logits.
  std::stop_token stop;
};

/// Arena of one session; created by its engine, opaque to the session.
class workspace {
 public:
  virtual ~workspace() = default;
  [[nodiscard]] virtual std::size_t bytes() const noexcept = 0;
};

/// Immutable and thread-safe: forward may run at the same time for different workspaces and caches.
class engine {
 public:
  virtual ~engine() = default;
  [[nodiscard]] virtual const kv_layout& kv() const = 0;
  [[nodiscard]] virtual std::int32_t n_vocab() const = 0;
  [[nodiscard]] virtual std::int32_t n_embd() const = 0;
  [[nodiscard]] virtual std::int32_t n_ctx_train() const = 0;
  /// Of metadata and tensor table: identifies the model in files of KV state.
  [[nodiscard]] virtual std::uint64_t digest() const = 0;
  /// For chunks of at most n_batch tokens. Errors: invalid_argument, out_of_memory.
  [[nodiscard]] virtual result<std::unique_ptr<workspace>> new_workspace(std::int32_t n_batch) const = 0;
  [[nodiscard]] virtual std::size_t workspace_bytes(std::int32_t n_batch) const = 0;
  /// Writes the caches' rows of these positions, their next states, and `out`: [output_rows.size(), n_vocab or n_embd]
  /// floats. A token's results are the same bit for bit however the tokens are cut into chunks, and whatever other
  /// sequences are in the chunk. Cancelled within one layer. On error the contents of those rows, states and `out` are
  /// unspecified; everything else is untouched.
  [[nodiscard]] virtual result<void> forward(const chunk& c, workspace& w, std::span<float> out) const = 0;
};

}  // namespace flywheel::inline v0::detail
