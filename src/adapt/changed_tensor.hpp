// A tensor of a base with what adapters do to it, computed row by row when it is read.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/model/adapter_archive.hpp"
#include "src/io/computed_tensors.hpp"

namespace flywheel::inline v0::adapt {

/// One adapter's change of one tensor.
struct tensor_change {
  io::archive adapter;
  adapter_change change;
  float scale = 1;
};

/// Rows of L R, where the change is factor L R: B and A of a product; A and B^T of embedding rows. R is kept in memory
/// from the first reading to release(). Thread-safe.
class delta_rows {
 public:
  /// The adapter was checked against the base (adapter_changes); `to` is the base's tensor.
  delta_rows(const io::archive& adapter, const adapter_change& change, const io::tensor_info& to);
  ~delta_rows();
  delta_rows(delta_rows&&) noexcept;
  /// values[i] += factor * (L R)[first + i], for `count` rows of the base's tensor.
  [[nodiscard]] result<void> add(std::int64_t first, std::int64_t count, float factor, float* values) const;
  void release() const noexcept;

 private:
  struct state;
  std::unique_ptr<state> state_;
};

/// f32 rows of `to` with the changes, which are all of it.
[[nodiscard]] std::unique_ptr<io::computed_tensor> make_changed_tensor(const io::archive& base,
                                                                       const io::tensor_info& to,
                                                                       std::vector<tensor_change> changes);

/// Rows of a tensor as f32. Thread-safe.
[[nodiscard]] result<void> read_rows(const io::archive& from, const io::tensor_info& tensor, std::int64_t first,
                                     std::int64_t count, float* out);

}  // namespace flywheel::inline v0::adapt
