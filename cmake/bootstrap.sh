#!/usr/bin/env bash
# Installs what building flywheel needs and this machine lacks. Does nothing, quickly, when nothing is missing.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: cmake/bootstrap.sh [--tests] [--bench] [--bench-peers] [--clang] [--arm64] [--dry-run]
       cmake/bootstrap.sh --which-cxx | --which-clang

Installs the compiler (g++ 12 or later), CMake, Ninja, ccache and the libraries that flywheel is built from:
with apt on Debian and Ubuntu (as root, or through sudo), with Homebrew on macOS. On other systems it names
what is missing and installs nothing.

  --tests        also Catch2, for the test suite
  --bench        also Google Benchmark
  --bench-peers  --bench, and the libraries that FLYWHEEL_BENCH_PEERS compares with: oneDNN, OpenBLAS, Eigen
  --clang        also clang 16 or later with its sanitizer and fuzzer runtimes: the second compiler
  --arm64        also the arm64 cross compiler and qemu, for running arm64 kernels on another machine
  --dry-run      print what would be installed, install nothing
  --which-cxx    print the C++ compiler to build with, then exit (nothing is installed)
  --which-clang  print the clang++ to build with, or nothing when there is none; then exit
TEXT
}

min_gcc=12
min_clang=16
max_clang=24  # newest name tried

say() { printf '%s\n' "$*"; }
fail() { printf 'bootstrap: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Major version of a compiler, 0 when it is not there.
major() { local v; v=$("$1" -dumpversion 2>/dev/null) || v=0; printf '%s' "${v%%.*}"; }

# The compiler to build with: CXX if set, else the default one if it is new enough, else the newest g++-N.
which_cxx() {
  if [ -n "${CXX:-}" ]; then say "$CXX"; return; fi
  if [ "$(uname -s)" = Darwin ]; then say c++; return; fi
  if [ "$(major g++)" -ge $min_gcc ]; then say g++; return; fi
  local v
  for v in 16 15 14 13 12; do if have "g++-$v"; then say "g++-$v"; return; fi; done
}

# The lowest suitable clang, so that the oldest supported compiler is the one that is checked. Its libFuzzer and
# sanitizer runtimes must be there too.
which_clang() {
  local v name
  for ((v = min_clang; v <= max_clang; v++)); do
    name="clang++-$v"
    if have "$name" && clang_complete "$name"; then say "$name"; return; fi
  done
  if have clang++ && [ "$(major clang++)" -ge $min_clang ] && clang_complete clang++; then say clang++; return; fi
  if [ "$(uname -s)" = Darwin ] && have brew; then
    name="$(brew --prefix llvm 2>/dev/null)/bin/clang++"
    if [ -x "$name" ]; then say "$name"; fi
  fi
}
clang_complete() {
  local dir
  dir=$("$1" -print-resource-dir 2>/dev/null) && ls "$dir"/lib/*/*fuzzer* >/dev/null 2>&1
}

tests=0 bench=0 peers=0 clang=0 arm64=0 dry=0
while [ $# -gt 0 ]; do
  case $1 in
    --tests) tests=1 ;;
    --bench) bench=1 ;;
    --bench-peers) bench=1 peers=1 ;;
    --clang) clang=1 ;;
    --arm64) arm64=1 ;;
    --dry-run) dry=1 ;;
    --which-cxx) which_cxx; exit 0 ;;
    --which-clang) which_clang; exit 0 ;;
    -h|--help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done

# ---- Debian, Ubuntu ------------------------------------------------------------------------------------------------
apt_installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
apt_candidate() {
  local v; v=$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p')
  [ -n "$v" ] && [ "$v" != "(none)" ]
}
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

bootstrap_apt() {
  local missing=() arm64_missing=() package cxx_missing=0 clang_missing=0
  local wanted=(pkg-config libpcre2-dev libutf8proc-dev libyaml-cpp-dev libssl-dev nlohmann-json3-dev libcli11-dev libtbb-dev)
  # Tools count wherever they come from.
  have cmake || missing+=(cmake)
  have ninja || missing+=(ninja-build)
  have ccache || missing+=(ccache)
  [ -n "$(which_cxx)" ] || cxx_missing=1
  if [ $tests = 1 ]; then wanted+=(catch2); fi
  if [ $bench = 1 ]; then wanted+=(libbenchmark-dev); fi
  if [ $peers = 1 ]; then wanted+=(libdnnl-dev libopenblas-dev libeigen3-dev); fi
  if [ $clang = 1 ] && [ -z "$(which_clang)" ]; then clang_missing=1; fi
  for package in "${wanted[@]}"; do apt_installed "$package" || missing+=("$package"); done
  if [ $arm64 = 1 ]; then
    have aarch64-linux-gnu-g++ || arm64_missing+=(g++-aarch64-linux-gnu)
    have qemu-aarch64 || have qemu-aarch64-static || arm64_missing+=(qemu-user)
  fi
  if [ ${#missing[@]} = 0 ] && [ ${#arm64_missing[@]} = 0 ] && [ $cxx_missing = 0 ] && [ $clang_missing = 0 ]; then
    return
  fi

  if [ "$(id -u)" != 0 ] && ! have sudo && [ $dry = 0 ]; then
    [ $cxx_missing = 0 ] || missing+=(g++)
    [ $clang_missing = 0 ] || missing+=("clang-$min_clang" "libclang-rt-$min_clang-dev")
    fail "neither root nor sudo; as root, run: apt-get install ${missing[*]} ${arm64_missing[*]}"
  fi
  export DEBIAN_FRONTEND=noninteractive
  local log; log=$(mktemp)
  local options=(-o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
  if [ $dry = 0 ]; then
    say "bootstrap: updating the package lists (apt-get update)"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" -qq update >"$log" 2>&1 || {
      tail -n 20 "$log" >&2; say "bootstrap: apt-get update failed; trying with the lists at hand" >&2; }
  fi

  # Which package brings a new enough compiler depends on the release.
  if [ $cxx_missing = 1 ]; then
    local default v
    default=$(apt-cache policy g++ | sed -n 's/^  Candidate: \([0-9]*:\)\{0,1\}\([0-9]*\).*/\2/p')
    if [ "${default:-0}" -ge $min_gcc ]; then
      missing+=(g++)
    else
      for v in 14 13 12 none; do [ $v = none ] || ! apt_candidate "g++-$v" || break; done
      [ $v != none ] || fail "this release has no g++ $min_gcc or later; install one and set CXX to it"
      missing+=("g++-$v")
    fi
  fi
  if [ $clang_missing = 1 ]; then
    local found=0
    for ((v = min_clang; v <= max_clang; v++)); do
      if apt_candidate "clang-$v" && apt_candidate "libclang-rt-$v-dev"; then
        missing+=("clang-$v" "libclang-rt-$v-dev"); found=1; break
      fi
    done
    [ $found = 1 ] || say "bootstrap: this release has no clang $min_clang or later; going on without the second compiler" >&2
  fi
  for package in "${arm64_missing[@]}"; do
    if apt_candidate "$package"; then missing+=("$package"); else
      say "bootstrap: this release has no $package; going on without running arm64 kernels" >&2
    fi
  done
  if [ ${#missing[@]} = 0 ]; then return; fi

  if [ $dry = 1 ]; then say "bootstrap: would install: ${missing[*]}"; return; fi
  say "bootstrap: installing ${missing[*]}"
  if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" -qq install -y --no-install-recommends \
      "${missing[@]}" >"$log" 2>&1 </dev/null; then
    tail -n 30 "$log" >&2
    fail "apt-get install failed (whole log: $log)"
  fi
  rm -f "$log"
  say "bootstrap: done"
}

# ---- macOS ---------------------------------------------------------------------------------------------------------
bootstrap_brew() {
  have brew || fail "install Homebrew (https://brew.sh) first; it brings the libraries"
  local formulas="cmake ninja pkgconf ccache pcre2 utf8proc yaml-cpp openssl nlohmann-json cli11 tbb" lacking="" formula
  if [ $tests = 1 ]; then formulas="$formulas catch2"; fi
  if [ $bench = 1 ]; then formulas="$formulas google-benchmark"; fi
  if [ $peers = 1 ]; then formulas="$formulas onednn openblas eigen libomp"; fi
  if [ $clang = 1 ] && [ -z "$(which_clang)" ]; then formulas="$formulas llvm"; fi
  local installed; installed=" $(brew list --formula -1 | tr '\n' ' ') "
  for formula in $formulas; do
    case $installed in *" $formula "*) ;; *) lacking="$lacking $formula" ;; esac
  done
  if [ -z "$lacking" ]; then return; fi
  if [ $dry = 1 ]; then say "bootstrap: would install:$lacking"; return; fi
  say "bootstrap: brew install$lacking"
  # shellcheck disable=SC2086
  brew install --quiet $lacking
}

# ---- elsewhere -----------------------------------------------------------------------------------------------------
bootstrap_by_name() {
  local absent="" header
  [ -n "$(which_cxx)" ] || absent="$absent, g++ $min_gcc or later (or clang $min_clang or later)"
  have cmake || absent="$absent, CMake 3.22 or later"
  have ninja || absent="$absent, Ninja"
  have pkg-config || absent="$absent, pkg-config"
  if have pkg-config; then
    pkg-config --exists libpcre2-8 || absent="$absent, PCRE2 (8-bit library and headers)"
    pkg-config --exists libutf8proc || absent="$absent, utf8proc"
    pkg-config --exists yaml-cpp || absent="$absent, yaml-cpp"
    pkg-config --exists libcrypto || absent="$absent, OpenSSL"
    pkg-config --exists tbb || absent="$absent, oneTBB"
  else
    absent="$absent, PCRE2, utf8proc, yaml-cpp, OpenSSL, oneTBB"
  fi
  for header in nlohmann/json.hpp:nlohmann-json CLI/CLI.hpp:CLI11; do
    [ -e "/usr/include/${header%%:*}" ] || [ -e "/usr/local/include/${header%%:*}" ] || absent="$absent, ${header##*:}"
  done
  if [ $tests = 1 ] && ! [ -e /usr/include/catch2 ] && ! [ -e /usr/local/include/catch2 ]; then absent="$absent, Catch2"; fi
  if [ $bench = 1 ] && ! [ -e /usr/include/benchmark ] && ! [ -e /usr/local/include/benchmark ]; then
    absent="$absent, Google Benchmark"
  fi
  if [ $clang = 1 ] && [ -z "$(which_clang)" ]; then
    say "bootstrap: no clang $min_clang or later with its compiler-rt found; going on without the second compiler" >&2
  fi
  if [ -n "$absent" ]; then
    say "bootstrap: this system's package manager is not known here. Install (with development files):${absent#,}." >&2
    say "  Fedora:  dnf install gcc-c++ cmake ninja-build pkgconf ccache pcre2-devel utf8proc-devel yaml-cpp-devel openssl-devel json-devel cli11-devel tbb-devel catch-devel" >&2
    say "  Arch:    pacman -S gcc cmake ninja pkgconf ccache pcre2 libutf8proc yaml-cpp openssl nlohmann-json cli11 onetbb catch2" >&2
    say "  openSUSE: zypper install gcc-c++ cmake ninja pkgconf ccache pcre2-devel utf8proc-devel yaml-cpp-devel libopenssl-devel nlohmann_json-devel cli11-devel tbb-devel Catch2-devel" >&2
    exit 1
  fi
}

if have apt-get && have dpkg-query; then
  bootstrap_apt
elif [ "$(uname -s)" = Darwin ]; then
  bootstrap_brew
else
  bootstrap_by_name
fi
