// Declares every kernel of every kernels.inc that this build has.
#pragma once

#include <type_traits>

#include "isa_config.hpp"
#include "kernels/registry.hpp"

namespace flywheel::inline v0::kernels {

#define FLYWHEEL_KERNEL(slot, isa) FLYWHEEL_WHEN_##isa(std::remove_pointer_t<slot##_fn> slot##_##isa;)
#define FLYWHEEL_TO_F32(type, isa) FLYWHEEL_WHEN_##isa(std::remove_pointer_t<to_f32_fn> to_f32_##type##_##isa;)
#include "kernels/activation/kernels.inc"
#include "kernels/attention/kernels.inc"
#include "kernels/codebook/kernels.inc"
#include "kernels/convert/kernels.inc"
#include "kernels/delta_net/kernels.inc"
#include "kernels/feedback/kernels.inc"
#include "kernels/low_rank/kernels.inc"
#include "kernels/norm/kernels.inc"
#include "kernels/quantize/kernels.inc"
#include "kernels/roof/kernels.inc"
#include "kernels/rope/kernels.inc"
#undef FLYWHEEL_KERNEL
#undef FLYWHEEL_TO_F32

/// The functions of one line of matmul/kernels.inc; see matmul_kernel.
#define FLYWHEEL_MATMUL_DECLARE(name)                                                                        \
  struct name {                                                                                              \
    static std::size_t panel_bytes(std::int64_t k);                                                          \
    static void pack(const std::byte* rows, std::size_t row_stride, std::int32_t cols, std::int64_t k,       \
                     std::byte* out);                                                                        \
    static std::size_t prepared_bytes(std::int64_t m, std::int64_t k);                                       \
    static void prepare(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end, \
                        std::int64_t k, std::byte* out);                                                     \
    static void run(const matmul_args& args);                                                                \
  };
/// Defines them from a class with the same static functions.
#define FLYWHEEL_MATMUL_DEFINE(name, ...)                                                                             \
  std::size_t name::panel_bytes(std::int64_t k) { return __VA_ARGS__::panel_bytes(k); }                               \
  void name::pack(const std::byte* rows, std::size_t row_stride, std::int32_t cols, std::int64_t k, std::byte* out) { \
    __VA_ARGS__::pack(rows, row_stride, cols, k, out);                                                                \
  }                                                                                                                   \
  std::size_t name::prepared_bytes(std::int64_t m, std::int64_t k) { return __VA_ARGS__::prepared_bytes(m, k); }      \
  void name::prepare(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,             \
                     std::int64_t k, std::byte* out) {                                                                \
    __VA_ARGS__::prepare(x, x_stride, row_begin, row_end, k, out);                                                    \
  }                                                                                                                   \
  void name::run(const matmul_args& args) { __VA_ARGS__::run(args); }

#define FLYWHEEL_MATMUL(activations, weight, rows, cols, isa) \
  FLYWHEEL_WHEN_##isa(FLYWHEEL_MATMUL_DECLARE(matmul_##activations##_##weight##_##rows##x##cols##_##isa))
#include "kernels/matmul/kernels.inc"
#undef FLYWHEEL_MATMUL

}  // namespace flywheel::inline v0::kernels
