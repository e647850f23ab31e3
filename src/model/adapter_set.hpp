// The adapters of one sequence, checked and ready for runs.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/device/low_rank.hpp"
#include "flywheel/model/adapter.hpp"
#include "flywheel/model/model.hpp"

namespace flywheel::inline v0 {

struct adapter::state {
  std::shared_ptr<const model::state> base;
  adapter_info info;
  device::adapter_weights weights;
  buffer storage;            ///< What the weights point into.
  std::uint64_t digest = 0;  ///< Of everything that decides what it does.
};

namespace detail {

struct adapter_set {
  std::vector<adapter_use> uses;              ///< As they were given.
  std::vector<device::adapter_share> shares;  ///< Those that do anything.
  std::int64_t width = 0;                     ///< See workspace::fit.

  /// Errors: invalid_argument (an empty handle, an adapter of another model, a scale that is not finite).
  [[nodiscard]] static result<adapter_set> create(const model::state& of, std::span<const adapter_use> uses);
  /// Equal sets compute the same. 0: no adapters.
  [[nodiscard]] std::uint32_t digest() const noexcept;
  friend bool operator==(const adapter_set& a, const adapter_set& b) noexcept { return a.shares == b.shares; }
};

}  // namespace detail
}  // namespace flywheel::inline v0
