// Quantizing one tensor, with the vector instructions of this CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/core/tensor.hpp"
#include "flywheel/quant/recipe.hpp"

namespace flywheel::inline v0::quant {

/// Whether quantize() can make this type; and whether it needs importance for a usable result (IQ1, IQ2, IQ3_XXS).
[[nodiscard]] FLYWHEEL_API bool can_quantize(dtype type) noexcept;
[[nodiscard]] FLYWHEEL_API bool wants_importance(dtype type) noexcept;

/// A dense tensor [..., rows, cols] of any type with a decoder, row by row in parallel; the same bytes for any number
/// of threads, but not for any instruction set: sums are rounded in another order. Thread-safe. Errors:
/// invalid_argument (columns that are no whole blocks; importance of another size; NaN or infinity in tensor or
/// importance, and values beyond the range of f16 or bf16, naming the index [row, column]), unsupported (a type without
/// decoder or encoder), out_of_memory, cancelled.
[[nodiscard]] FLYWHEEL_API result<tensor> quantize(const tensor_view& from, const recipe& how, const context& ctx = {},
                                                   const control& control = {});
/// The same into memory of the caller, for tensors that come in pieces: rows `first_row` .. of a matrix with `cols`
/// columns; messages count from first_row. `out` has rows * row_bytes(how.type, cols) bytes at any address, none of
/// them among those of `rows`; after an error its content is unspecified. An empty ctx starts threads for each call:
/// make one where pieces are many.
[[nodiscard]] FLYWHEEL_API result<void> quantize_rows(std::span<const float> rows, std::int64_t cols,
                                                      std::int64_t first_row, const recipe& how,
                                                      std::span<std::byte> out, const context& ctx,
                                                      const control& control = {});

}  // namespace flywheel::inline v0::quant
