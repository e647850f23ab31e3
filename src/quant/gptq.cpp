#include "flywheel/quant/gptq.hpp"

#include <cstring>
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
    FLYWHEEL_TRY(const context used, ctx.or_default());
    return round_with_feedback(w, activations, *format, options, used, control);
  });
}

result<tensor> gptq(const tensor_view& w, const tensor_moments& activations, dtype type, const gptq_options& options,
                    const context& ctx, const control& control) {
  return detail::guarded([&]() -> result<tensor> {
    const std::size_t matrices = activations.matrices.size();
    if (matrices == 1) return gptq(w, activations.matrices[0], type, options, ctx, control);
    if (w.dims.rank() != 3 || static_cast<std::size_t>(w.dims[0]) != matrices)
      return error{errc::invalid_argument,
                   "moments of " + std::to_string(matrices) + " matrices for a tensor " + w.dims.to_string(),
                   {}};
    if (!w.dense())
      return error{
          errc::invalid_argument, "error feedback takes a dense tensor, and there are gaps between the rows", {}};
    FLYWHEEL_TRY(tensor out, tensor::zeros(type, w.dims));
    for (std::size_t i = 0; i < matrices; ++i) {
      const auto first = static_cast<std::int64_t>(i) * w.dims[1];
      const tensor_view matrix(w.type, {w.dims[1], w.dims[2]}, w.row(first));
      const auto rounded = gptq(matrix, activations.of(i), type, options, ctx, control);
      if (!rounded)
        return error{rounded.error().code, "matrix " + std::to_string(i) + ": " + rounded.error().message,
                     rounded.error().where};
      std::memcpy(out.view().row(first), rounded->view().data, rounded->bytes());
    }
    return out;
  });
}

}  // namespace flywheel::inline v0::quant
