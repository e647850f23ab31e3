#include "src/model/session_sizes.hpp"

#include <algorithm>
#include <string>

#include "flywheel/detail/try.hpp"
#include "src/model/kv_cache.hpp"

namespace flywheel::inline v0::detail {

result<session_sizes> sizes_of(const engine& engine, const session_options& options) {
  const auto invalid = [](std::string message, const char* where) {
    return error{errc::invalid_argument, std::move(message), where};
  };
  if (engine.encoder())
    return error{errc::unsupported,
                 "an encoder turns whole texts into vectors and cannot continue them; use model::embed (flywheel embed)",
                 "session"};
  session_sizes sizes;
  sizes.options = options;
  session_options& o = sizes.options;
  if (o.n_ctx < 0)
    return invalid("must be positive, or 0 for what the model was trained for", "session_options::n_ctx");
  if (o.n_ctx == 0) o.n_ctx = engine.n_ctx_train() > 0 ? std::min(engine.n_ctx_train(), default_n_ctx) : default_n_ctx;
  if (o.n_batch < 1) return invalid("must be positive", "session_options::n_batch");
  o.n_batch = std::min(o.n_batch, o.n_ctx);
  if (o.when_full != when_full::refuse && o.when_full != when_full::slide)
    return invalid("is not one of when_full's values", "session_options::when_full");
  if (o.keep < 0) return invalid("must not be negative", "session_options::keep");
  if (o.when_full == when_full::slide && o.keep > o.n_ctx - 2)
    return invalid(
        "leaves less than two of " + std::to_string(o.n_ctx) + " tokens to slide over; keep fewer or enlarge n_ctx",
        "session_options::keep");
  FLYWHEEL_TRY(sizes.kv_bytes, kv_cache::bytes_for(engine.kv(), o.kv_type, o.n_ctx));
  sizes.arena_bytes =
      engine.workspace_bytes(o.n_batch) + 2 * sizeof(float) * static_cast<std::size_t>(engine.n_vocab());
  return sizes;
}

}  // namespace flywheel::inline v0::detail
