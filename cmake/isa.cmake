# ISA clusters, in ascending order of preference within an architecture. One row per cluster:
#   flywheel_isa(NAME PROCESSOR "compile flags" "CPU test" [FALLBACK])
# PROCESSOR is a regular expression for CMAKE_SYSTEM_PROCESSOR; the CPU test is a C++ expression over `cpu`
# (src/core/cpu_features.hpp). A cluster is built when the processor matches and the compiler accepts the flags;
# kernels/<family>/<NAME>.cpp is compiled with them. The library's other code is built with the baseline flags.
# FALLBACK (default generic) is the cluster whose kernels it uses where it has none: its CPU test must be implied.
include(CheckCXXCompilerFlag)
set(FLYWHEEL_ISA_NAMES "")
set(FLYWHEEL_ISA_ROWS "")
set(FLYWHEEL_ISA_CONFIG "")

function(flywheel_isa name processor flags test)
  set(built 0)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "${processor}" AND (NOT FLYWHEEL_ISA_CLUSTERS OR name IN_LIST FLYWHEEL_ISA_CLUSTERS))
    set(built 1)
    if(flags)
      string(MAKE_C_IDENTIFIER "FLYWHEEL_HAS_${name}" has)
      set(CMAKE_REQUIRED_QUIET ON)
      check_cxx_compiler_flag("${flags}" ${has})
      if(NOT ${has})
        set(built 0)
      endif()
    endif()
  endif()
  if(built)
    list(APPEND FLYWHEEL_ISA_NAMES ${name})
    set(FLYWHEEL_ISA_NAMES "${FLYWHEEL_ISA_NAMES}" PARENT_SCOPE)
    separate_arguments(flag_list UNIX_COMMAND "${flags}")
    set(FLYWHEEL_ISA_FLAGS_${name} "${flag_list}" PARENT_SCOPE)
  else()
    set(test "false")  # its names may not exist here
  endif()
  set(FLYWHEEL_ISA_ROWS "${FLYWHEEL_ISA_ROWS}FLYWHEEL_ISA(${name}, ${built}, (${test}))\n" PARENT_SCOPE)
  set(fallback generic)
  if(ARGC GREATER 4)
    set(fallback ${ARGV4})
  endif()
  set(when "")
  if(built)
    set(when "__VA_ARGS__")
  endif()
  set(FLYWHEEL_ISA_CONFIG "${FLYWHEEL_ISA_CONFIG}#define FLYWHEEL_WHEN_${name}(...) ${when}\n#define FLYWHEEL_FALLBACK_${name} ${fallback}\n" PARENT_SCOPE)
endfunction()

set(x86 "^(x86_64|AMD64|amd64)$")
set(arm "^(aarch64|arm64|ARM64)$")
flywheel_isa(generic        ".*"    "" "true")
flywheel_isa(x86_avx2       "${x86}" "-mavx2 -mfma -mf16c -mbmi2" "cpu.avx2 && cpu.fma && cpu.f16c && cpu.bmi2")
flywheel_isa(x86_avxvnni    "${x86}" "-mavx2 -mfma -mf16c -mbmi2 -mavxvnni" "cpu.avx2 && cpu.fma && cpu.f16c && cpu.bmi2 && cpu.avxvnni" x86_avx2)
set(avx512vnni_flags "-mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprefer-vector-width=512")
set(avx512vnni_test
  "cpu.avx2 && cpu.fma && cpu.f16c && cpu.bmi2 && cpu.avx512f && cpu.avx512bw && cpu.avx512vl && cpu.avx512dq && cpu.avx512vnni")
flywheel_isa(x86_avx512vnni "${x86}" "${avx512vnni_flags}" "${avx512vnni_test}" x86_avx2)
flywheel_isa(x86_zen4       "${x86}" "${avx512vnni_flags}" "cpu.amd_family == 0x19 && ${avx512vnni_test}" x86_avx512vnni)
flywheel_isa(arm64_dotprod  "${arm}" "-march=armv8.2-a+dotprod+fp16" "cpu.dotprod && cpu.fp16")
flywheel_isa(arm64_i8mm     "${arm}" "-march=armv8.2-a+dotprod+fp16+i8mm" "cpu.dotprod && cpu.fp16 && cpu.i8mm" arm64_dotprod)
flywheel_isa(wasm_simd128   "^wasm"  "-msimd128" "true")

file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/generated/isa_table.inc CONTENT
"// Generated from cmake/isa.cmake: FLYWHEEL_ISA(name, built, CPU test)\n@FLYWHEEL_ISA_ROWS@" @ONLY)
file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/generated/isa_config.hpp CONTENT
"// Generated from cmake/isa.cmake: FLYWHEEL_WHEN_<cluster>(code) keeps the code if the cluster is built.
#pragma once
@FLYWHEEL_ISA_CONFIG@" @ONLY)

# Compiles kernels/<family>/<cluster>.cpp with the cluster's flags, and kernels/*.cpp (registry) with none. Compilers must not
# fuse a*b+c on their own: they would do so in one tile size and not in another, and a row's result would depend on it.
check_cxx_compiler_flag(-ffp-contract=off FLYWHEEL_HAS_FP_CONTRACT)
function(flywheel_add_kernels target)
  file(GLOB plain CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/*.cpp)
  target_sources(${target} PRIVATE ${plain})
  set(sanitize "")
  if(FLYWHEEL_SANITIZE MATCHES "undefined")  # checking every address takes minutes per file; AddressSanitizer sees bad ones
    set(sanitize -fno-sanitize=pointer-overflow)
  endif()
  foreach(name IN LISTS FLYWHEEL_ISA_NAMES)
    file(GLOB files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/*/${name}.cpp)
    target_sources(${target} PRIVATE ${files})
    set_source_files_properties(${files} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON SKIP_PRECOMPILE_HEADERS ON
      COMPILE_OPTIONS "${FLYWHEEL_ISA_FLAGS_${name}};${sanitize};$<$<BOOL:${FLYWHEEL_HAS_FP_CONTRACT}>:-ffp-contract=off>")
  endforeach()
endfunction()
