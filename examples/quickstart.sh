#!/usr/bin/env bash
# From a fresh machine to generated text: installs what is missing, builds the library and the command, shows the
# hardware, generates from the embedded model and scores a text. Needs the network for packages only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s\n' "$*"; }

step "What building needs (cmake/bootstrap.sh)"
cmake/bootstrap.sh
cxx=$(cmake/bootstrap.sh --which-cxx)
echo "compiler: $($cxx --version | head -n 1)"

step "Building the library and the command into build/"
mkdir -p build
cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER="$cxx" -DFLYWHEEL_BUILD_TESTS=OFF \
  -DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=6 \
  >build/configure.log 2>&1 || { cat build/configure.log; exit 1; }
cmake --build build --target flywheel flywheel-cli >build/build.log 2>&1 || { tail -n 50 build/build.log; exit 1; }
flywheel=build/bin/flywheel
model=examples/models/tiny-base-q8_0.gguf

step "This machine: flywheel info"
$flywheel info

step "Generating from the embedded model: flywheel run -p '...'"
$flywheel run -p "The captain looked at the sea and said" -n 48 --temp 0.7 --seed 7

step "Scoring a text: flywheel perplexity $model --file examples/sample.txt"
$flywheel perplexity $model --file examples/sample.txt

step "What to try next"
echo "  $flywheel run                              talk to the embedded model (any GGUF file: flywheel run MODEL)"
echo "  $flywheel inspect $model   what is in a model file, and the memory it will take"
echo "  less examples/generate.cpp                          the same from a C++ program, in 40 lines"
