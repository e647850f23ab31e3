// What this CPU can do and the operating system allows. Private to the library; isa_table.inc's tests use the names.
#pragma once

#include <string>

namespace flywheel::inline v0 {

/// Every field exists on every architecture, false where it has no meaning.
struct cpu_features {
  unsigned amd_family = 0;  // x86, made by AMD: 0x19 are Zen 3 and Zen 4; otherwise 0
  // x86; the AVX ones only when the system saves YMM registers, the AVX-512 ones when it saves ZMM registers.
  bool avx = false;
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool bmi2 = false;
  bool avxvnni = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512vl = false;
  bool avx512dq = false;
  bool avx512vbmi = false;
  bool avx512vnni = false;
  bool avx512bf16 = false;
  bool avx512fp16 = false;
  // arm64
  bool dotprod = false;
  bool fp16 = false;
  bool i8mm = false;
  bool bf16 = false;
  bool sve = false;
};

[[nodiscard]] cpu_features detect_cpu_features() noexcept;
/// Brand string as the CPU or system gives it; empty when there is none.
[[nodiscard]] std::string cpu_brand();
/// "x86_64", "aarch64", "wasm32", ...; what this library was compiled for.
[[nodiscard]] std::string cpu_architecture();

}  // namespace flywheel::inline v0
