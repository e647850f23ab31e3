#!/usr/bin/env bash
# Builds the fuzzers (clang, libFuzzer, address and undefined-behaviour sanitizers) and runs each for some time, starting
# from tests/fuzz/corpus. What it finds stays in build-test/fuzz/found; a finding belongs into the corpus, where the test
# suite replays it.
# usage: tests/fuzz.sh [SECONDS each, default 60] [NAME...]     NAME as in tests/fuzz/fuzz_NAME.cpp
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
seconds=60
case ${1:-} in
  -h|--help) sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
  [0-9]*) seconds=$1; shift ;;
esac

cmake/bootstrap.sh --clang || exit 1
clang=$(cmake/bootstrap.sh --which-clang)
[ -n "$clang" ] || { echo "fuzz: no clang 16 or later with its libFuzzer here" >&2; exit 1; }
build="build-test/fuzz"
mkdir -p "$build/found"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER="$clang" -DFLYWHEEL_BUILD_FUZZERS=ON \
  -DFLYWHEEL_SANITIZE=address,undefined -DFLYWHEEL_BUILD_TESTS=OFF -DFLYWHEEL_BUILD_CLI=OFF -DFLYWHEEL_BUILD_EXAMPLES=OFF \
  >"$build/configure.log" 2>&1 || { cat "$build/configure.log"; exit 1; }
cmake --build "$build" >"$build/build.log" 2>&1 || { tail -n 50 "$build/build.log"; exit 1; }

passed=0 failed=0
for source in tests/fuzz/fuzz_*.cpp; do
  name=$(basename "$source" .cpp)
  name=${name#fuzz_}
  if [ $# -gt 0 ]; then case " $* " in *" $name "*) ;; *) continue ;; esac; fi
  seeds=()
  if [ -d "tests/fuzz/corpus/$name" ]; then seeds=("tests/fuzz/corpus/$name"); fi
  mkdir -p "$build/corpus/$name"
  # New inputs go to the first folder; the seeds in the source tree are only read.
  if "$build/bin/fuzz_$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
      -artifact_prefix="$build/found/$name-" "$build/corpus/$name" "${seeds[@]}" >"$build/$name.log" 2>&1 </dev/null; then
    passed=$((passed + 1))
    printf '%-12s %6d s  %s runs  ok\n' "$name" "$seconds" "$(sed -n 's/.*number_of_executed_units: *//p' "$build/$name.log")"
  else
    failed=$((failed + 1))
    tail -n 40 "$build/$name.log"
    printf '%-12s FAILED; the input is in %s\n' "$name" "$build/found"
  fi
done
printf '%d passed, %d failed\n' $passed $failed
[ $failed = 0 ] && [ $passed -gt 0 ]
