# Options, and what they do to a target.
option(FLYWHEEL_BUILD_CLI "Build the flywheel command" ${PROJECT_IS_TOP_LEVEL})
option(FLYWHEEL_BUILD_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(FLYWHEEL_BUILD_BENCH "Build the benchmarks" OFF)
option(FLYWHEEL_BENCH_PEERS "Measure other libraries beside flywheel in bench-kernels: oneDNN, OpenBLAS, Eigen" OFF)
option(FLYWHEEL_BUILD_EXAMPLES "Build the examples" ${PROJECT_IS_TOP_LEVEL})
option(FLYWHEEL_BUILD_FUZZERS "Build the libFuzzer targets (clang)" OFF)
option(FLYWHEEL_KERNELS_ONLY "Only core, formats and kernels, and the tests of core and kernels: for bringing up an ISA cluster, without third-party libraries" OFF)
option(FLYWHEEL_SERIAL "No threads, no oneTBB, no mmap (WebAssembly, tiny systems)" OFF)
option(FLYWHEEL_WITH_TBB "Offer the oneTBB executor" ON)
option(FLYWHEEL_WERROR "Warnings are errors" OFF)
option(FLYWHEEL_CCACHE "Use ccache when it is installed" ${PROJECT_IS_TOP_LEVEL})
set(FLYWHEEL_ISA_CLUSTERS "" CACHE STRING "Names of the ISA clusters to build (cmake/isa.cmake), generic among them; empty: all")
set(FLYWHEEL_SANITIZE "" CACHE STRING "Sanitizers for every target, such as 'address,undefined' or 'thread'")
option(BUILD_SHARED_LIBS "Build shared libraries" OFF)
if(FLYWHEEL_KERNELS_ONLY)  # what the rest of the library needs is neither looked for nor installed
  foreach(part BUILD_CLI BUILD_BENCH BUILD_EXAMPLES BUILD_FUZZERS INSTALL WITH_TBB)
    set(FLYWHEEL_${part} OFF)
  endforeach()
  set(BUILD_SHARED_LIBS OFF)
endif()

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
if(PROJECT_IS_TOP_LEVEL)
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
  set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
endif()

if(FLYWHEEL_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(FLYWHEEL_CCACHE_PROGRAM ccache)
  if(FLYWHEEL_CCACHE_PROGRAM)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${FLYWHEEL_CCACHE_PROGRAM})
  endif()
endif()

if(FLYWHEEL_SANITIZE)
  add_compile_options(-fsanitize=${FLYWHEEL_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${FLYWHEEL_SANITIZE})
  if(FLYWHEEL_SANITIZE MATCHES "thread")
    set(FLYWHEEL_WITH_TBB OFF)  # a oneTBB that was not built for ThreadSanitizer hides its synchronisation from it
  endif()
endif()

if(FLYWHEEL_BUILD_FUZZERS)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "flywheel: FLYWHEEL_BUILD_FUZZERS needs clang: libFuzzer is part of it")
  endif()
  add_compile_options(-fsanitize=fuzzer-no-link)  # coverage, in the library too
endif()

# Warnings that every file of the project is clean under; parsers of untrusted input also under -Wconversion.
function(flywheel_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE -Wno-restrict)  # false alarms on "text" + std::string, GCC bug 105651
  endif()
  if(CMAKE_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -Wno-subobject-linkage)  # a source inside another one looks like a header
  endif()
  if(FLYWHEEL_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
endfunction()
file(GLOB FLYWHEEL_PARSERS CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/io/*.cpp ${PROJECT_SOURCE_DIR}/src/text/*.cpp
  ${PROJECT_SOURCE_DIR}/src/model/hugging_face/*.cpp ${PROJECT_SOURCE_DIR}/src/model/hugging_face/families/*.cpp
  ${PROJECT_SOURCE_DIR}/src/device/simulator/program.cpp ${PROJECT_SOURCE_DIR}/src/adapt/recipe_yaml.cpp
  ${PROJECT_SOURCE_DIR}/src/adapt/lineage.cpp)
if(NOT CMAKE_UNITY_BUILD)  # sources with options of their own would be compiled one by one
  set_source_files_properties(${FLYWHEEL_PARSERS} PROPERTIES COMPILE_OPTIONS "-Wconversion")
endif()

# The sampler, merge methods and the simulated NPUs compute the same bits on every machine: their products and sums are
# not fused.
set_source_files_properties(${PROJECT_SOURCE_DIR}/src/model/sampler.cpp ${PROJECT_SOURCE_DIR}/src/device/simulator/tiles.cpp
  ${PROJECT_SOURCE_DIR}/src/adapt/merge/methods.cpp PROPERTIES COMPILE_OPTIONS "-ffp-contract=off")
