// Low-rank changes of weights as a run takes them: kept beside the weights, chosen for every row of a chunk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "flywheel/core/dtype.hpp"

namespace flywheel::inline v0::device {

/// What an adapter adds to one weight W [n, k], laid out as kernels/low_rank says. Factors are f32, f16 or bf16.
struct low_rank_change {
  std::int64_t rank = 0;         ///< 0: nothing changes.
  dtype a_type = dtype::f32;     ///< Of products: A [rank, k]; null: the identity. Of embedding rows: row e, [rank],
  const std::byte* a = nullptr;  ///< belongs to token e, and rows follow each other without gaps.
  dtype b_type = dtype::f32;
  const std::byte* b = nullptr;  ///< B [n, rank]. Of embedding rows also null: the identity.
  float factor = 1;              ///< Of B A.
  const float* gain = nullptr;   ///< [n], or null: added is gain times the product itself, without its bias (DoRA).
};

/// An adapter. Immutable while runs use it.
struct adapter_weights {
  std::vector<low_rank_change> products;    ///< [graph::weight_info::slot]
  std::vector<low_rank_change> embeddings;  ///< [graph::weight_info::slot]
  std::int64_t width = 0;                   ///< The most projections of one row that a node needs.
};

/// One of the adapters of a sequence, and how much of it.
struct adapter_share {
  const adapter_weights* weights = nullptr;
  float scale = 1;
  friend bool operator==(const adapter_share&, const adapter_share&) = default;
};

/// Consecutive rows with the same adapters.
struct adapter_segment {
  std::int64_t begin = 0, end = 0;
  std::span<const adapter_share> shares;
};

/// The adapters of a run. Rows outside of all segments have none.
struct adapter_bindings {
  std::span<const adapter_segment> tokens;   ///< Rows of the chunk, ascending.
  std::span<const adapter_segment> outputs;  ///< Rows of the wanted outputs, ascending.
  float* projections = nullptr;              ///< [tokens of the chunk, width]: memory of the run.
  std::int64_t width = 0;                    ///< At least the sum of the widths of any segment's adapters.
};

}  // namespace flywheel::inline v0::device
