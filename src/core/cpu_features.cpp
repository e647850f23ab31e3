#include "src/core/cpu_features.hpp"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)
#  define FLYWHEEL_X86 1
#  if defined(_MSC_VER) && !defined(__clang__)
#    include <immintrin.h>
#    include <intrin.h>
#  else
#    include <cpuid.h>
#  endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#  define FLYWHEEL_ARM64 1
#  if defined(__linux__)
#    include <sys/auxv.h>

#    include <fstream>
#  elif defined(__APPLE__)
#    include <sys/sysctl.h>
#  endif
#endif

namespace flywheel::inline v0 {

#if defined(FLYWHEEL_X86)

namespace {

struct registers {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

constexpr bool bit(std::uint32_t word, unsigned index) noexcept { return (word >> index & 1U) != 0; }

/// All zero when the CPU does not have this leaf.
registers cpuid(std::uint32_t leaf, std::uint32_t subleaf = 0) noexcept {
  registers r;
#  if defined(_MSC_VER) && !defined(__clang__)
  int words[4];
  __cpuid(words, static_cast<int>(leaf & 0x80000000U));
  if (static_cast<std::uint32_t>(words[0]) < leaf) return r;
  __cpuidex(words, static_cast<int>(leaf), static_cast<int>(subleaf));
  std::memcpy(&r, words, sizeof r);
#  else
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
#  endif
  return r;
}

/// XCR0: which register states the operating system saves. Only with OSXSAVE.
std::uint32_t saved_states() noexcept {
#  if defined(_MSC_VER) && !defined(__clang__)
  return static_cast<std::uint32_t>(_xgetbv(0));
#  else
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
#  endif
}

}  // namespace

cpu_features detect_cpu_features() noexcept {
  cpu_features f;
  const registers zero = cpuid(0);
  const registers one = cpuid(1);
  const registers seven = cpuid(7, 0);
  const registers seven_one = seven.eax >= 1 ? cpuid(7, 1) : registers{};
  const std::uint32_t states = bit(one.ecx, 27) ? saved_states() : 0;
  const bool ymm = (states & 0x06U) == 0x06U;         // XMM, YMM
  const bool zmm = ymm && (states & 0xe0U) == 0xe0U;  // opmask, upper halves of ZMM0-15, ZMM16-31
  if (zero.ebx == 0x68747541U && zero.edx == 0x69746e65U && zero.ecx == 0x444d4163U)  // "AuthenticAMD"
    f.amd_family = (one.eax >> 8 & 0xfU) + (one.eax >> 20 & 0xffU);                   // base and extended family
  f.bmi2 = bit(seven.ebx, 8);
  f.avx = ymm && bit(one.ecx, 28);
  f.fma = f.avx && bit(one.ecx, 12);
  f.f16c = f.avx && bit(one.ecx, 29);
  f.avx2 = f.avx && bit(seven.ebx, 5);
  f.avxvnni = f.avx2 && bit(seven_one.eax, 4);
  f.avx512f = zmm && f.avx2 && bit(seven.ebx, 16);
  f.avx512dq = f.avx512f && bit(seven.ebx, 17);
  f.avx512bw = f.avx512f && bit(seven.ebx, 30);
  f.avx512vl = f.avx512f && bit(seven.ebx, 31);
  f.avx512vbmi = f.avx512f && bit(seven.ecx, 1);
  f.avx512vnni = f.avx512f && bit(seven.ecx, 11);
  f.avx512fp16 = f.avx512f && bit(seven.edx, 23);
  f.avx512bf16 = f.avx512f && bit(seven_one.eax, 5);
  return f;
}

std::string cpu_brand() {
  char text[49] = {};
  for (std::uint32_t i = 0; i < 3; ++i) {
    const registers r = cpuid(0x80000002U + i);
    std::memcpy(text + i * sizeof r, &r, sizeof r);
  }
  std::string brand = text;
  const std::size_t first = brand.find_first_not_of(' ');
  if (first == std::string::npos) return {};
  return brand.substr(first, brand.find_last_not_of(' ') - first + 1);
}

#elif defined(FLYWHEEL_ARM64) && defined(__linux__)

cpu_features detect_cpu_features() noexcept {
  // Bits of asm/hwcap.h, spelled out because older headers lack the names.
  const unsigned long one = ::getauxval(AT_HWCAP);
  const unsigned long two = ::getauxval(AT_HWCAP2);
  cpu_features f;
  f.fp16 = (one >> 9 & 1U) != 0 && (one >> 10 & 1U) != 0;  // FPHP, ASIMDHP
  f.dotprod = (one >> 20 & 1U) != 0;                       // ASIMDDP
  f.sve = (one >> 22 & 1U) != 0;                           // SVE
  f.i8mm = (two >> 13 & 1U) != 0;                          // I8MM
  f.bf16 = (two >> 14 & 1U) != 0;                          // BF16
  return f;
}

std::string cpu_brand() {
  // The kernel gives a name on few systems; implementer and part identify the core (such as 0x41, 0xd40) otherwise.
  std::ifstream file("/proc/cpuinfo");
  std::string line, implementer, part;
  const auto value = [&line] {
    const std::size_t colon = line.find(':');
    return colon == std::string::npos || colon + 2 > line.size() ? std::string() : line.substr(colon + 2);
  };
  while (std::getline(file, line)) {
    if (line.rfind("model name", 0) == 0) return value();
    if (implementer.empty() && line.rfind("CPU implementer", 0) == 0) implementer = value();
    if (part.empty() && line.rfind("CPU part", 0) == 0) part = value();
  }
  return implementer.empty() ? std::string() : "ARM implementer " + implementer + " part " + part;
}

#elif defined(FLYWHEEL_ARM64) && defined(__APPLE__)

namespace {

bool has(const char* name) noexcept {
  int value = 0;
  std::size_t size = sizeof value;
  return ::sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

}  // namespace

cpu_features detect_cpu_features() noexcept {
  cpu_features f;
  f.fp16 = has("hw.optional.arm.FEAT_FP16");
  f.dotprod = has("hw.optional.arm.FEAT_DotProd");
  f.i8mm = has("hw.optional.arm.FEAT_I8MM");
  f.bf16 = has("hw.optional.arm.FEAT_BF16");
  return f;
}

std::string cpu_brand() {
  char text[128] = {};
  std::size_t size = sizeof text - 1;
  return ::sysctlbyname("machdep.cpu.brand_string", text, &size, nullptr, 0) == 0 ? text : std::string();
}

#else

cpu_features detect_cpu_features() noexcept { return {}; }
std::string cpu_brand() { return {}; }

#endif

std::string cpu_architecture() {
#if defined(__x86_64__) || defined(_M_X64)
  return "x86_64";
#elif defined(FLYWHEEL_X86)
  return "x86";
#elif defined(FLYWHEEL_ARM64)
  return "aarch64";
#elif defined(__arm__)
  return "arm";
#elif defined(__wasm__)
  return "wasm32";
#elif defined(__riscv)
  return "riscv64";
#else
  return "unknown";
#endif
}

}  // namespace flywheel::inline v0
