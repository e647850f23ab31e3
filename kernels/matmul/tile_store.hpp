// What all products share: rounding, and the way finished sums leave. In an unnamed namespace: see f32_product.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/matmul/matmul.hpp"

namespace flywheel::inline v0::kernels {
namespace {

constexpr std::size_t round_up_64(std::size_t bytes) { return (bytes + 63) / 64 * 64; }
constexpr std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

/// y = sums + bias + residual for rows [begin, end) and the columns of the panel at `col`; sums: [rows][Cols].
template <int Cols>
void store_tile(const matmul_args& args, std::int64_t begin, std::int64_t end, std::int64_t col, const float* sums) {
  const matmul_epilogue& epilogue = args.epilogue;
  for (std::int64_t row = begin; row < end; ++row, sums += Cols) {
    const std::int64_t i = row - args.row_begin;
    float* y = args.y + i * args.y_stride + col;
    const float* residual = epilogue.residual ? epilogue.residual + i * epilogue.residual_stride + col : nullptr;
    const float* bias = epilogue.bias ? epilogue.bias + col : nullptr;
    float out[Cols];
    for (int c = 0; c < Cols; ++c) out[c] = sums[c];
    if (args.n - col >= Cols) {
      if (bias)
        for (int c = 0; c < Cols; ++c) out[c] += bias[c];
      if (residual)
        for (int c = 0; c < Cols; ++c) out[c] += residual[c];
      for (int c = 0; c < Cols; ++c) y[c] = out[c];
    } else {
      for (std::int64_t c = 0; c < args.n - col; ++c) {
        if (bias) out[c] += bias[c];
        if (residual) out[c] += residual[c];
        y[c] = out[c];
      }
    }
  }
}

}  // namespace
}  // namespace flywheel::inline v0::kernels
