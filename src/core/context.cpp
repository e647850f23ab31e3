#include "flywheel/core/context.hpp"

#include "flywheel/core/buffer.hpp"
#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0 {

struct context::state {
  context_options options;
  isa_report isa;
  std::shared_ptr<std::pmr::memory_resource> memory;
};

result<context> context::create(context_options options) {
  return detail::guarded([&]() -> result<context> {
    auto made = std::make_shared<state>();
    FLYWHEEL_TRY(made->isa, detect_isa(options.isa));
    if (!options.executor) {
      FLYWHEEL_TRY(options.executor, make_thread_team(options.threads));
    }
    made->memory = options.memory;
    made->options = std::move(options);
    context c;
    c.state_ = std::move(made);
    if (c.logs(log_level::info)) {
      const isa_report& isa = c.isa();
      c.log(log_level::info, (isa.cpu.empty() ? isa.architecture : isa.cpu) + ": " + std::string(isa.selected) + ", " +
                                 std::to_string(c.executor().concurrency()) + " threads");
    }
    return c;
  });
}

result<context> context::or_default() const {
  if (*this) return *this;
  return create();
}

// An empty context answers like one that does everything on the calling thread with the generic kernels.

flywheel::executor& context::executor() const noexcept {
  return state_ ? *state_->options.executor : *serial_executor();
}

std::pmr::memory_resource* context::memory() const noexcept {
  return state_ && state_->memory ? state_->memory.get() : page_resource();
}

const isa_report& context::isa() const noexcept {
  static const isa_report none{{}, {}, {}, "generic", false};
  return state_ ? state_->isa : none;
}

activation_scales context::activations() const noexcept {
  return state_ ? state_->options.activations : activation_scales::automatic;
}

bool context::logs(log_level level) const noexcept {
  return state_ && state_->options.log && level >= state_->options.log_threshold;
}

void context::log(log_level level, std::string_view message) const noexcept {
  if (!logs(level)) return;
  try {
    state_->options.log(level, message);
  } catch (...) {  // a sink that fails must not stop the work
  }
}

}  // namespace flywheel::inline v0
