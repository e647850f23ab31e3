// Seeing activations: what goes into a model's weights while it runs. Importance matrices, Hessians, pruning scores and
// routers' statistics are observers.
#pragma once

#include <cstdint>
#include <span>

#include "flywheel/core/config.hpp"
#include "flywheel/graph/rewrite.hpp"

namespace flywheel::inline v0::device {

/// A place where activations can be seen: the input of one or several weights.
using observation_point = graph::tap_point;

/// Activations at one point.
struct observed_rows {
  std::uint32_t point = 0;   ///< Index into the points of begin().
  std::int64_t expert = 0;   ///< Which expert's, where the point has experts.
  const float* x = nullptr;  ///< [rows, cols], one row after the other; valid during the call.
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

/// Passive: what it sees is the exact f32 input of the weights' products, which it must not change, in the order of the
/// graph; results of the model are the same bit for bit as without it. It sees rows that are computed: an output head
/// and what comes before it behind the last attention only those whose logits are wanted, an expert those that chose
/// it. Models take one in model_options.
class FLYWHEEL_API observer {
 public:
  virtual ~observer();
  /// Once, while the model is opened: all points, in the order of the graph.
  virtual void begin(std::span<const observation_point> points) = 0;
  /// Whether the point is wanted; those that are not cost nothing. Asked right after begin().
  [[nodiscard]] virtual bool wants(const observation_point& point) const {
    (void)point;
    return true;
  }
  /// Called by all workers of a run with the same rows at about the same time; worker w of `workers` does its share,
  /// by columns or tiles, never by rows: then sums do not depend on the number of threads. Workers must not wait for
  /// each other here: they may be one thread. Between two points all of them are done with the first. A run that is
  /// cancelled may leave the last point to some of its workers. Runs of several sessions at once call it at once: the
  /// observer says in its own documentation whether it takes that.
  virtual void observe(const observed_rows& seen, unsigned worker, unsigned workers) noexcept = 0;
};

}  // namespace flywheel::inline v0::device
