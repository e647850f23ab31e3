// What sessions need from a compiled model: run one chunk of tokens. The boundary between sessions (tokens, cache,
// sampling) and graphs (what is computed, by whom).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "flywheel/core/result.hpp"
#include "flywheel/device/low_rank.hpp"
#include "flywheel/text/tokenizer.hpp"
#include "src/model/kv_layout.hpp"

namespace flywheel::inline v0::detail {

class kv_cache;

/// Consecutive tokens of one sequence, at the positions behind those of its cache.
struct chunk_part {
  std::int64_t n_tokens = 0;  ///< At least 1.
  kv_cache* cache = nullptr;  ///< Writable rows for all of them exist: kv_cache::reserve. No cache comes twice. Null
                              ///< for encoders.
  std::int64_t n_ctx = 0;     ///< Positions that the sequence may grow to.
  std::span<const device::adapter_share> adapters = {};  ///< See workspace::fit.
};

/// Rows of a tensor that graphs of a model use, and how.
struct weight_site {
  std::string name;
  std::int64_t first_row = 0, rows = 0, cols = 0;
  bool product = false;  ///< As a weight of `linear` nodes;
  bool table = false;    ///< as the table of tokens' embeddings;
  bool other = false;    ///< in a way that adapters cannot change.
};

/// Where adapters can change a model.
struct adapter_sites {
  std::vector<weight_site> weights;                  ///< [graph::weight_info::slot]
  std::vector<std::vector<std::uint32_t>> together;  ///< Slots of every node that a run projects for.
  bool elsewhere = false;                            ///< Some products run on a device other than the CPU.
};

/// What is special about a model whose tokens see their whole text: it keeps nothing of a sequence, which begins and
/// ends in one chunk, and cannot continue it.
struct encoder_facts {
  std::int32_t max_positions = 0;  ///< Rows of its table of positions; 0: it has none.
  std::int32_t token_types = 0;    ///< Rows of its table of token types; 0: it has none.
  std::int32_t n_scores = 0;       ///< What its classification head gives for a text; 0: it has none.
};

/// One forward pass. Tokens of a sequence see each other causally, and every position already in their cache; those of
/// different sequences do not see each other. All caches hold the same type of numbers.
struct chunk {
  std::span<const token_id> ids;              ///< [n_tokens] of all sequences; not empty, ids in range.
  std::span<const chunk_part> parts;          ///< Their n_tokens add up to ids.size().
  std::span<const std::int32_t> token_types;  ///< [n_tokens], for encoders; empty: all 0.
  std::span<const std::int32_t> output_rows;  ///< Which of the tokens need outputs, ascending; may be empty.
  bool hidden = false;  ///< Outputs are hidden states after the final norm, else logits; of encoders, else scores.
  std::stop_token stop;
};

/// Arena of one session; created by its engine, opaque to the session.
class workspace {
 public:
  virtual ~workspace() = default;
  [[nodiscard]] virtual std::size_t bytes() const noexcept = 0;
  /// Makes room for sequences whose adapters have no more than this sum of adapter_weights::width. On error nothing has
  /// changed.
  [[nodiscard]] virtual result<void> fit(std::int64_t /*adapter_width*/) { return {}; }
};

/// Immutable and thread-safe: forward may run at the same time for different workspaces and caches.
class engine {
 public:
  virtual ~engine() = default;
  [[nodiscard]] virtual const kv_layout& kv() const = 0;
  [[nodiscard]] virtual std::int32_t n_vocab() const = 0;
  [[nodiscard]] virtual std::int32_t n_embd() const = 0;
  [[nodiscard]] virtual std::int32_t n_ctx_train() const = 0;
  /// Nothing for a model that continues sequences.
  [[nodiscard]] virtual std::optional<encoder_facts> encoder() const { return std::nullopt; }
  /// Null where adapters are not known at all.
  [[nodiscard]] virtual const adapter_sites* sites() const { return nullptr; }
  /// Of metadata and tensor table: identifies the model in files of KV state.
  [[nodiscard]] virtual std::uint64_t digest() const = 0;
  /// For chunks of at most n_batch tokens. Errors: invalid_argument, out_of_memory.
  [[nodiscard]] virtual result<std::unique_ptr<workspace>> new_workspace(std::int32_t n_batch) const = 0;
  [[nodiscard]] virtual std::size_t workspace_bytes(std::int32_t n_batch) const = 0;
  /// Writes the caches' rows of these positions, their next states, and `out`: [output_rows.size(), n_vocab, n_embd or
  /// n_scores] floats. A token's results are the same bit for bit however the tokens are cut into chunks, and whatever
  /// other sequences are in the chunk. Cancelled within one layer. On error the contents of those rows, states and
  /// `out` are unspecified; everything else is untouched.
  [[nodiscard]] virtual result<void> forward(const chunk& c, workspace& w, std::span<float> out) const = 0;
};

}  // namespace flywheel::inline v0::detail
