// The calling thread's floating-point rounding and denormal mode. A team's workers take over their caller's, so that
// results do not depend on which thread computes them. Private to the library.
#pragma once

#include <cstdint>

namespace flywheel::inline v0 {

#if defined(__SSE__)

using float_control = std::uint32_t;                            // MXCSR without its sticky exception flags
inline constexpr float_control default_float_control = 0x1f80;  // to nearest even, no flushing to zero, no traps
inline float_control get_float_control() noexcept { return __builtin_ia32_stmxcsr() & ~0x3fU; }
inline void set_float_control(float_control value) noexcept { __builtin_ia32_ldmxcsr(value); }

#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))

using float_control = std::uint64_t;  // FPCR
inline constexpr float_control default_float_control = 0;
inline float_control get_float_control() noexcept {
  float_control value;
  __asm__ volatile("mrs %0, fpcr" : "=r"(value));
  return value;
}
inline void set_float_control(float_control value) noexcept { __asm__ volatile("msr fpcr, %0" ::"r"(value)); }

#else

using float_control = std::uint32_t;
inline constexpr float_control default_float_control = 0;
inline float_control get_float_control() noexcept { return 0; }
inline void set_float_control(float_control) noexcept {}

#endif

}  // namespace flywheel::inline v0
