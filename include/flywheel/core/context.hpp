// What a caller shares between models: threads, memory, log sink, instruction set. There is no global state.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <memory_resource>
#include <string>
#include <string_view>

#include "flywheel/core/config.hpp"
#include "flywheel/core/executor.hpp"
#include "flywheel/core/isa.hpp"
#include "flywheel/core/ops.hpp"
#include "flywheel/core/result.hpp"

namespace flywheel::inline v0 {

enum class log_level : std::uint8_t { debug, info, warning, error };

/// Receives the library's messages, one line each without a newline. May be called from any thread.
using log_sink = std::function<void(log_level level, std::string_view message)>;

struct context_options {
  unsigned threads = 0;                               ///< Size of the default team; 0: one per physical core.
  std::shared_ptr<flywheel::executor> executor;       ///< A pool to use instead of the default team.
  log_sink log;                                       ///< Empty: silent.
  log_level log_threshold = log_level::warning;       ///< Messages below it are not made.
  std::shared_ptr<std::pmr::memory_resource> memory;  ///< Large buffers come from here; null: page_resource().
  std::string isa;                                    ///< Force an ISA cluster by name; empty: environment or best.
  activation_scales activations = activation_scales::automatic;  ///< For products with quantized weights.
};

/// A cheap handle, copied by value; thread-safe. The default-constructed context is empty: functions that take one
/// then create a context with default options.
class FLYWHEEL_API context {
 public:
  context() noexcept = default;
  /// Errors: those of detect_isa and make_thread_team.
  [[nodiscard]] static result<context> create(context_options options = {});

  /// This context, or a new one with default options where it is empty. Errors: those of create.
  [[nodiscard]] result<context> or_default() const;

  [[nodiscard]] explicit operator bool() const noexcept { return state_ != nullptr; }
  [[nodiscard]] flywheel::executor& executor() const noexcept;
  [[nodiscard]] std::pmr::memory_resource* memory() const noexcept;
  [[nodiscard]] const isa_report& isa() const noexcept;
  [[nodiscard]] activation_scales activations() const noexcept;
  [[nodiscard]] bool logs(log_level level) const noexcept;
  void log(log_level level, std::string_view message) const noexcept;

 private:
  struct state;
  std::shared_ptr<const state> state_;
};

}  // namespace flywheel::inline v0
