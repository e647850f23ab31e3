#!/usr/bin/env bash
# House rules that a machine can check. Prints every breach; exit code 1 when there is one.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

find include/flywheel src kernels -name '*.[ch]pp' -o -name '*.inc' | sort | xargs awk '
function breach(text) { print text; ++breaches }
# The room a path belongs to; empty for the umbrella header, detail/ and files of the same folder.
function room(path) {
  sub(/^include\//, "", path)
  if (path ~ /^flywheel\/[^\/]+\//) { sub(/^flywheel\//, "", path); sub(/\/.*/, "", path) }
  else if (path ~ /^src\/[^\/]+\//) { sub(/^src\//, "", path); sub(/\/.*/, "", path) }
  else if (path ~ /^kernels\//) path = "kernels"
  else return ""
  return path == "detail" ? "" : path
}
BEGIN {
  # Includes point downwards in the order of the table of rooms: one room a line, top first.
  while ((getline line < "ARCHITECTURE.md") > 0) {
    if (line ~ /^```/) inside = !inside
    else if (inside && line ~ /^ [a-z]/) { split(line, word, " "); rank[word[1]] = ++rooms }
    else if (!inside && rooms) break
  }
  if (rooms < 8) breach("ARCHITECTURE.md: the table of rooms was not found")
}
FNR == 1 { from = room(FILENAME); public = FILENAME ~ /^include\//; library = FILENAME !~ /^src\/cli\//; ++files }
/^ *# *include/ {
  match($0, /[<"][^>"]+[>"]/)
  name = substr($0, RSTART + 1, RLENGTH - 2)
  quoted = substr($0, RSTART, 1) == "\""
  to = quoted ? room(name) : ""
  if (from != "" && to != "" && from != to) {
    if (!(from in rank)) breach(FILENAME ": ARCHITECTURE.md has no room " from)
    else if (!(to in rank)) breach(FILENAME ": includes " name ": ARCHITECTURE.md has no room " to)
    else if (rank[to] < rank[from]) breach(FILENAME ": includes " name ": " to " is above " from)
  }
  # Public headers include the standard library and flywheel, nothing else.
  if (public && (quoted ? name !~ /^flywheel\// : name ~ /[.\/]/)) breach(FILENAME ": a public header includes " name)
}
/\t| $/ { breach(FILENAME ":" FNR ": a tab or a trailing blank") }
library {
  gsub(/\\"/, ""); gsub(/"[^"]*"/, "\"\""); sub(/\/\/.*/, "")
  if (/(^|[^A-Za-z0-9_.>])(abort|exit|_Exit|quick_exit|terminate|printf|fprintf|puts|fputs|putchar|perror|signal|sigaction|set_terminate|set_new_handler|setlocale) ?\(/ || /std::(cout|cerr|clog)/)
    breach(FILENAME ":" FNR ": the library must not abort, exit, print or install handlers")
}
END {
  if (breaches) { print breaches " breaches"; exit 1 }
  print "house rules: " files " files, no breach"
}'
