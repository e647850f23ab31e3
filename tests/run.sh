#!/usr/bin/env bash
# Builds flywheel with its tests and runs them. See usage().
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
root=$PWD

usage() {
  cat <<'TEXT'
usage: tests/run.sh [JOB...] [--all]

Installs what is missing (cmake/bootstrap.sh), builds under build-test/ with warnings as errors, and runs:
  release   g++ Release build, the whole test suite                      (default)
  install   installed copies, static and shared, used by outside projects
  clang     the second compiler: clang 16 or later, Release, core and kernels (asan compiles and runs all with it)
  asan      all but the conformance kit's own suite under AddressSanitizer and UndefinedBehaviorSanitizer
  tsan      core, device, measure and what of model starts threads, with one vector cluster's kernels, under ThreadSanitizer
  serial    the build without threads, oneTBB and mmap, for debugging: tests of core, formats, io and text
  arm64     core and kernels cross-compiled for arm64, their tests in qemu-user
--all runs every job. A job that cannot run here (no second compiler, no emulator) is reported as skipped, never as passed.
The last lines say for each job what happened and how long it took; the exit code is 0 when none failed.
TEXT
}

all_jobs="release install clang asan tsan serial arm64"
jobs=""
for argument in "$@"; do
  case $argument in
    --all) jobs=$all_jobs ;;
    -h|--help) usage; exit 0 ;;
    release|install|clang|asan|tsan|serial|arm64) jobs="$jobs $argument" ;;
    *) usage >&2; exit 2 ;;
  esac
done
[ -n "$jobs" ] || jobs=release

groups="--tests"
case " $jobs " in *" clang "*|*" asan "*|*" tsan "*) groups="$groups --clang" ;; esac
case " $jobs " in *" arm64 "*) groups="$groups --arm64" ;; esac
# shellcheck disable=SC2086
cmake/bootstrap.sh $groups || exit 1
cxx=$(cmake/bootstrap.sh --which-cxx)
clang=$(cmake/bootstrap.sh --which-clang)
cores=$(getconf _NPROCESSORS_ONLN)

configure() {  # configure NAME COMPILER OPTIONS...
  local name=$1 compiler=$2
  shift 2
  cmake -S "$root" -B "$root/build-test/$name" -G Ninja -DCMAKE_CXX_COMPILER="$compiler" -DFLYWHEEL_WERROR=ON "$@" \
    >"$root/build-test/$name.log" 2>&1 || { cat "$root/build-test/$name.log"; return 1; }
}
build() {  # build NAME TARGETS...
  local name=$1
  shift
  cmake --build "$root/build-test/$name" --target "$@" >"$root/build-test/$name.log" 2>&1 || {
    grep -E -A 20 'FAILED|error:|warning:' "$root/build-test/$name.log" | head -n 200; return 1; }
}
suite() {  # suite NAME CTEST-OPTIONS...; one test more than cores, for some wait
  local name=$1
  shift
  (cd "$root/build-test/$name" && ctest --output-on-failure --no-tests=error -j $((cores + 1)) "$@" </dev/null)
}

# Why a job cannot run here; the job then returns 77.
skip() { skipped=$1; return 77; }

# Sources are compiled several at once, which takes half the time. That each has the includes it needs shows in the job
# install, which compiles the library's one by one, for debugging.
unity=(-DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=6)
# Builds in neighbouring folders with the same flags compile things once.
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1

job_release() {
  configure release "$cxx" "${unity[@]}" -DCMAKE_BUILD_TYPE=Release && build release all && suite release
}
job_install() {
  configure release "$cxx" "${unity[@]}" -DCMAKE_BUILD_TYPE=Release && build release all &&
    tests/install/run.sh "$root/build-test/release" "$root/build-test/install" "$cxx" "$clang"
}
job_clang() {
  [ -n "$clang" ] || skip "no clang 16 or later here" || return
  configure clang "$clang" "${unity[@]}" -DCMAKE_BUILD_TYPE=Release -DFLYWHEEL_KERNELS_ONLY=ON &&
    build clang flywheel test-core test-kernels && suite clang -R '^(core|kernels|odr)$'
}
# The others are made of the same templates.
asan_clusters="generic;x86_avx2;x86_avx512vnni;arm64_dotprod;arm64_i8mm"
job_asan() {
  local compiler=${clang:-$cxx}
  configure asan "$compiler" "${unity[@]}" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1" \
    -DFLYWHEEL_SANITIZE=address,undefined "-DFLYWHEEL_ISA_CLUSTERS=$asan_clusters" \
    -DFLYWHEEL_BUILD_EXAMPLES=OFF && build asan all && suite asan -E '^device-kit$'
}
job_tsan() {  # not with clang: its runtime forbids the tests' own operator new
  configure tsan "$cxx" "${unity[@]}" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1" \
    -DFLYWHEEL_SANITIZE=thread "-DFLYWHEEL_ISA_CLUSTERS=generic;x86_avx2;arm64_dotprod" \
    -DFLYWHEEL_BUILD_EXAMPLES=OFF -DFLYWHEEL_BUILD_CLI=OFF && build tsan test-core test-device test-model test-measure &&
    suite tsan -R '^(core|device|measure)$' &&
    (cd "$root/build-test/tsan/bin" &&
      ./test-model -# "~[#reference_passes]~[#architectures_reference]~[#activations]~[#hugging_face]~[#hugging_face_tokenizer]~[#convert]~[#architectures]~[#sampler]~[#session_memory]")
}
job_serial() {
  configure serial "$cxx" "${unity[@]}" -DCMAKE_BUILD_TYPE=Debug -DFLYWHEEL_SERIAL=ON -DFLYWHEEL_BUILD_EXAMPLES=OFF \
    -DFLYWHEEL_BUILD_CLI=OFF && build serial flywheel test-core test-formats test-io test-text &&
    suite serial -R '^(core|formats|io|text)$'
}
job_arm64() {
  local compiler=aarch64-linux-gnu-g++
  [ "$(uname -m)" != aarch64 ] || skip "this is an arm64 machine, on which the other jobs run these tests" || return
  command -v $compiler >/dev/null || skip "no $compiler here" || return
  [ "$($compiler -dumpversion | cut -d. -f1)" -ge 12 ] || skip "$compiler is older than 12" || return
  command -v qemu-aarch64 qemu-aarch64-static >/dev/null || skip "no qemu-user here" || return
  # Catch2 2 is a header, Catch2 3 a library of the target's.
  [ -e /usr/include/catch2/catch.hpp ] || [ -e /usr/lib/aarch64-linux-gnu/cmake/Catch2 ] ||
    skip "no Catch2 for arm64 here" || return
  configure arm64 $compiler "${unity[@]}" -DCMAKE_BUILD_TYPE=Release -DFLYWHEEL_KERNELS_ONLY=ON \
    -DCMAKE_TOOLCHAIN_FILE="$root/cmake/toolchains/aarch64-linux-gnu.cmake" &&
    build arm64 flywheel test-core test-kernels && suite arm64 -R '^(core|kernels|odr)$'
}

mkdir -p build-test
report="" failed=0
for job in $jobs; do
  printf '\n==== %s\n' "$job"
  start=$SECONDS
  skipped="of its own accord"
  "job_$job"
  code=$?
  took=$((SECONDS - start))
  case $code in
    0) outcome=passed ;;
    77) outcome="skipped: $skipped" ;;
    *) outcome=FAILED failed=1 ;;
  esac
  report="$report$(printf '%-8s %4d s  %s' "$job" "$took" "$outcome")"$'\n'
done
printf '\n%s' "$report"
exit $failed
