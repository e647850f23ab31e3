#!/usr/bin/env bash
# House rules that a machine can check. Prints every breach; exit code 1 when there is one.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
breaches=0
breach() { printf '%s\n' "$*"; breaches=$((breaches + 1)); }

# ---- includes point downwards ----------------------------------------------------------------------------------------
# The order is ARCHITECTURE.md's own table: one room a line, top first.
rooms=$(awk '/^```/ {inside = !inside; next} inside && /^ [a-z]/ {print $1}' ARCHITECTURE.md)
[ "$(echo "$rooms" | wc -l)" -ge 8 ] || breach "ARCHITECTURE.md: the table of rooms was not found"
rank() { echo "$rooms" | grep -nx -- "$1" | cut -d: -f1; }
room_of() {  # the room a path belongs to
  case $1 in
    include/flywheel/*/*|flywheel/*/*) echo "$1" | sed -E 's#^(include/)?flywheel/([a-z0-9_]+)/.*#\2#' ;;
    src/*/*) echo "$1" | sed -E 's#^src/([a-z0-9_]+)/.*#\1#' ;;
    kernels/*) echo kernels ;;
  esac
}
files=$(find include/flywheel src kernels -name '*.[ch]pp' -o -name '*.inc' | sort)
while IFS=: read -r file include; do
  from=$(room_of "$file")
  to=$(room_of "$include")
  if [ -z "$from" ] || [ -z "$to" ] || [ "$from" = detail ] || [ "$to" = detail ] || [ "$from" = "$to" ]; then continue; fi
  from_rank=$(rank "$from")
  to_rank=$(rank "$to")
  if [ -z "$from_rank" ] || [ -z "$to_rank" ]; then
    breach "$file: includes \"$include\": ARCHITECTURE.md has no room '$([ -z "$from_rank" ] && echo "$from" || echo "$to")'"
  elif [ "$to_rank" -lt "$from_rank" ]; then
    breach "$file: includes \"$include\": $to is above $from"
  fi
done < <(echo "$files" | xargs grep -HoE '^ *# *include +"[^"]+"' | sed -E 's/: *# *include +"([^"]+)"/:\1/' | sort -u)

# ---- public headers include the standard library and flywheel, nothing else ------------------------------------------
while IFS=: read -r file include; do
  case $include in
    \"flywheel/*) ;;
    *.h\>|*/*) breach "$file: a public header includes $include" ;;
    \"*) breach "$file: write #include \"flywheel/...\" in public headers, not $include" ;;
  esac
done < <(find include -type f -print0 | xargs -0 grep -HoE '^ *# *include +[<"][^>"]+[>"]' | sed -E 's/: *# *include +/:/')

# ---- the library never ends the process and never prints -------------------------------------------------------------
library=$(echo "$files" | grep -v '^src/cli/')
while IFS= read -r line; do breach "$line: the library must not abort, exit, print or install handlers"; done < <(
  for file in $library; do
    sed -E 's#"([^"\\]|\\.)*"#""#g; s#//.*##' "$file" |
      grep -nE '(^|[^A-Za-z0-9_.>])(std::)?(abort|exit|_Exit|quick_exit|terminate|printf|fprintf|puts|fputs|putchar|perror|signal|sigaction|set_terminate|set_new_handler|setlocale)\(|std::(cout|cerr|clog|terminate|setlocale)' |
      sed -E "s#^([0-9]+):.*#$file:\1#"
  done)

# ---- text ------------------------------------------------------------------------------------------------------------
while IFS= read -r line; do breach "$line: a tab or trailing blank"; done < <(
  echo "$files" | xargs grep -nE "$(printf '\t')| +\$" | cut -d: -f1,2)

[ $breaches = 0 ] || { printf '%d breaches\n' $breaches; exit 1; }
echo "house rules: $(echo "$files" | wc -l) files, no breach"
