#include "flywheel/quant/gptq.hpp"

#include <string>

#include "flywheel/detail/try.hpp"
#include "flywheel/quant/grid.hpp"
#include "src/quant/error_feedback.hpp"

namespace flywheel::inline v0::quant {

result<tensor> gptq(const tensor_view& w, const gram_matrix& activations, dtype type, const gptq_options& options,
                    const context& ctx, const control& control) {
  return detail::guarded([&]() -> result<tensor> {
    const grid_format* format = find_grid(type);
    if (!format)
      return error{errc::unsupported,
                   "error feedback has no grid for " + std::string(to_string(type)) +
                       ": plain numbers and vector codebooks have none",
                   {}};
    if (ctx) return round_with_feedback(w, activations, *format, options, ctx, control);
    FLYWHEEL_TRY(const context own, context::create());
    return round_with_feedback(w, activations, *format, options, own, control);
  });
}

}  // namespace flywheel::inline v0::quant
