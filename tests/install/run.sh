#!/usr/bin/env bash
# Installs flywheel, static and shared, moves the installed trees elsewhere, and uses them from outside projects: with
# find_package, with pkg-config, and from source with FetchContent.
# usage: tests/install/run.sh STATIC_BUILD WORK_FOLDER [CXX [SECOND_CXX]]     (tests/run.sh install calls it)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
static_build=$1
work=$2
cxx=${3:-c++}
second=${4:-}
mkdir -p "$work"
passed=0
log=$work/log

note() { passed=$((passed + 1)); printf '  ok  %s\n' "$*"; }
fail() { printf 'install: FAILED: %s\n' "$*" >&2; exit 1; }
quietly() { "$@" >"$log" 2>&1 || { cat "$log" >&2; fail "$*"; }; }
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi

# ---- install, then move: nothing may remember where it was built or first installed --------------------------------
# Beside the static build and with its flags, so that ccache has compiled it already.
build_shared=$(dirname "$static_build")/shared
quietly cmake -S "$root" -B "$build_shared" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_UNITY_BUILD=ON \
  -DCMAKE_UNITY_BUILD_BATCH_SIZE=6 -DCMAKE_CXX_COMPILER="$cxx" \
  -DBUILD_SHARED_LIBS=ON -DFLYWHEEL_WERROR=ON -DFLYWHEEL_BUILD_TESTS=OFF -DFLYWHEEL_BUILD_EXAMPLES=OFF
quietly cmake --build "$build_shared"
for kind in static shared; do
  if [ $kind = static ]; then build=$static_build; else build=$build_shared; fi
  rm -rf "$work/staged" "${work:?}/$kind"
  quietly cmake --install "$build" --prefix "$work/staged"
  mv "$work/staged" "$work/$kind"
  prefixes=$(grep -rIl -e "$root" -e "$work/staged" "$work/$kind" || true)
  [ -z "$prefixes" ] || fail "absolute paths of this machine in $prefixes"
done
model=$(ls "$work"/static/share/flywheel/models/*.gguf)
[ -n "$(find "$work/static" -name LICENSE)" ] || fail "the licence is not installed"
note "both kinds install, hold no absolute paths, and were moved"

# ---- symbols ---------------------------------------------------------------------------------------------------------
library=$(find "$work/shared" -name 'libflywheel.so' -o -name 'libflywheel.dylib')
archive=$(find "$work/static" -name libflywheel.a)
if [ "$(uname -s)" = Linux ]; then
  nm -D --defined-only "$library" | awk '{print $3}' >"$work/exported"
  grep -q flywheel2v05model4open "$work/exported" || fail "model::open is not exported"
  alien=$(grep -Ev '^(_Z(TI|TS|TV|GV|Th[n0-9]*_|Tv[n0-9_]*_)?NK?8flywheel|flywheel_)' "$work/exported" || true)
  [ -z "$alien" ] || fail "the shared library exports other symbols than flywheel's: $(echo "$alien" | head -n 5 | c++filt)"
  note "the shared library exports $(wc -l <"$work/exported") symbols, all flywheel's"
  # Weak symbols are templates and inline functions, which every C++ object file has.
  alien=$(nm -g --defined-only "$archive" | awk '$2 ~ /^[A-TX-Z]$/ {print $3}' | grep -Ev '^(_Z[A-Za-z]*NK?8flywheel|_Z.*8flywheel|flywheel_)' || true)
  [ -z "$alien" ] || fail "the static library defines other names than flywheel's: $(echo "$alien" | head -n 5 | c++filt)"
  note "the static library defines no name outside flywheel's"
  readelf -d "$library" | grep -q 'SONAME.*libflywheel\.so\.0\.1\]' || fail "the shared library's name is not libflywheel.so.0.1"
  note "the shared library is libflywheel.so.0.1"
fi

# ---- the command -----------------------------------------------------------------------------------------------------
for kind in static shared; do
  (cd / && quietly "$work/$kind/bin/flywheel" run -p "The sea" -n 8 --greedy)
  [ -s "$log" ] || fail "the installed command ($kind) generated nothing"
  cp "$log" "$work/command-$kind"
done
cmp "$work/command-static" "$work/command-shared" || fail "the commands of the static and shared builds differ"
note "the moved command generates from its embedded model"

# ---- a vendor's device: a plug-in from the installed header alone, checked by the installed kit -------------------------
for kind in static shared; do
  quietly cmake -S "$root/examples/device_skeleton" -B "$work/device-$kind" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_CXX_COMPILER="$cxx" "${launcher[@]}" -DCMAKE_PREFIX_PATH="$work/$kind" -DCMAKE_DISABLE_FIND_PACKAGE_TBB=ON
  quietly cmake --build "$work/device-$kind"
  plugin=$work/device-$kind/device_skeleton.so
  (cd / && quietly "$work/$kind/bin/flywheel-device-conformance" "$plugin" --quick --report "$work/device-$kind/report.md")
  grep -q '^\*\*Conforms\*\*' "$work/device-$kind/report.md" || fail "the skeleton's report ($kind) does not say that it conforms"
  if [ "$(uname -s)" = Linux ] && readelf -d "$plugin" | grep -q flywheel; then fail "the plug-in links a library of flywheel's"; fi
  note "the device skeleton, built against the $kind install, conforms"
done

# ---- consumers -------------------------------------------------------------------------------------------------------
check_programs() { # check_programs NAME FOLDER
  quietly "$2/smoke" "$model"
  cp "$log" "$work/smoke-$1"
  cmp "$work/smoke-$1" "$work/smoke-find-static" || fail "$1: other text than with the static library"
  quietly "$2/generate" "$model" "It was"
  [ "$(wc -c <"$log")" -gt 20 ] || fail "$1: examples/generate.cpp wrote almost nothing"
  note "$1"
}
consume() { # consume NAME COMPILER OPTIONS...
  local name=$1 compiler=$2
  shift 2
  quietly cmake -S "$here/consumer" -B "$work/$name" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER="$compiler" \
    "${launcher[@]}" "$@"
  quietly cmake --build "$work/$name"
  check_programs "$name" "$work/$name"
}
consume find-static "$cxx" -DCMAKE_PREFIX_PATH="$work/static"
# A shared library brings what it needs: the consumer finds nothing else.
consume find-shared "$cxx" -DCMAKE_PREFIX_PATH="$work/shared" -DCMAKE_DISABLE_FIND_PACKAGE_TBB=ON \
  -DCMAKE_DISABLE_FIND_PACKAGE_Threads=ON -DCMAKE_DISABLE_FIND_PACKAGE_PkgConfig=ON -DCMAKE_DISABLE_FIND_PACKAGE_PCRE2=ON
consume fetch-static "$cxx" -DCONSUMER_MODE=fetch -DFLYWHEEL_SOURCE="$root" -DCMAKE_BUILD_TYPE=Debug -DFLYWHEEL_WERROR=ON
if [ -n "$second" ]; then
  consume find-static-second-compiler "$second" -DCMAKE_PREFIX_PATH="$work/static"
fi

for kind in static shared; do
  export PKG_CONFIG_PATH; PKG_CONFIG_PATH=$(dirname "$(find "$work/$kind" -name flywheel.pc)")
  libdir=$(dirname "$(dirname "$(find "$work/$kind" -name flywheel.pc)")")
  [ "$(pkg-config --modversion flywheel)" = "$(sed -n 's/^project(.* VERSION \([0-9.]*\).*/\1/p' "$root/CMakeLists.txt")" ] ||
    fail "flywheel.pc has another version than CMakeLists.txt"
  mkdir -p "$work/pkg-config-$kind"
  read -r -a flags <<<"$(pkg-config --cflags --libs flywheel)"
  for program in "smoke smoke.cpp unit_one.cpp unit_two.cpp" "generate ../../../examples/generate.cpp"; do
    read -r -a words <<<"$program"
    sources=()
    for source in "${words[@]:1}"; do sources+=("$here/consumer/$source"); done
    quietly "$cxx" -std=c++20 -O1 "${sources[@]}" -o "$work/pkg-config-$kind/${words[0]}" "${flags[@]}" -Wl,-rpath,"$libdir"
  done
  check_programs "pkg-config-$kind" "$work/pkg-config-$kind"
done

printf 'install: %d passed, 0 failed\n' "$passed"
