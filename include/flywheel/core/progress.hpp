// Conventions of every long call: it reports progress and it can be cancelled.
#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string_view>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0 {

/// Called from the thread that made the call (never from a worker), not more than about 20 times a second.
/// `total` is 0 when it is not known. `what` is valid during the call only.
using progress = std::function<void(std::uint64_t done, std::uint64_t total, std::string_view what)>;

/// How a long call talks to its caller; both parts are optional. A call that is stopped returns errc::cancelled and
/// leaves its objects valid (documented per call).
struct control {
  flywheel::progress progress;
  std::stop_token stop;

  [[nodiscard]] bool stopped() const noexcept { return stop.stop_requested(); }
};

}  // namespace flywheel::inline v0
