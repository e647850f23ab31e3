#!/usr/bin/env bash
# House rules that a machine can check (includes: tests/layering). Prints every breach; exit code 1 when there is one.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

# shellcheck disable=SC2016
find include/flywheel src kernels -name '*.[ch]pp' -o -name '*.inc' | sort | xargs awk '
function breach(text) { print FILENAME ":" FNR ": " text; ++breaches }
FNR == 1 { library = FILENAME !~ /^src\/(cli|device_conformance)\//; ++files }
/\t| $/ { breach("a tab or a trailing blank") }
library {
  gsub(/\\"/, ""); gsub(/"[^"]*"/, "\"\""); sub(/\/\/.*/, "")
  if (/(^|[^A-Za-z0-9_.>])(abort|exit|_Exit|quick_exit|terminate|printf|fprintf|puts|fputs|putchar|perror|signal|sigaction|set_terminate|set_new_handler|setlocale) ?\(/ || /std::(cout|cerr|clog)/)
    breach("the library must not abort, exit, print or install handlers")
}
END {
  if (breaches) { print breaches " breaches"; exit 1 }
  if (!files) { print "no files found"; exit 1 }
  print "house rules: " files " files, no breach"
}'
