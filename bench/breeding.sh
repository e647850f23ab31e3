#!/usr/bin/env bash
# What descendants of the small models of the shared family keep of their parents. See usage().
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
usage: bench/breeding.sh [-g GENERATIONS] [-w FOLDER]

Measures base, specialists (full and LoRA), every merge method with numbers set by hand, adapters together, mixtures of
experts, and what `flywheel evolve` finds, on the four texts of the family (`flywheel perplexity`), and writes
FOLDER/breeding.md and FOLDER/evolve-*.svg. Searches and prompts see calibration texts only. What is there already is not
made again, so that an interrupted run goes on.

  -g GENERATIONS  of each search; default: 30
  -w FOLDER       default: build/breeding
FLYWHEEL names the command (build/bin/flywheel), FAMILY the folder of models and texts (../shared/family), THREADS how
many threads it takes (default: its own choice).
TEXT
}

generations=30
work=build/breeding
while getopts "g:w:h" option; do
  case $option in
    g) generations=$OPTARG ;; w) work=$OPTARG ;;
    h) usage; exit 0 ;; *) usage >&2; exit 2 ;;
  esac
done
flywheel=${FLYWHEEL:-build/bin/flywheel}
family=${FAMILY:-../shared/family}
threads=${THREADS:+--threads $THREADS}
[ -x "$flywheel" ] || { echo "breeding.sh: $flywheel is not there; build it or set FLYWHEEL" >&2; exit 1; }
[ -d "$family/models" ] || { echo "breeding.sh: skipped: $family has no models; set FAMILY" >&2; exit 0; }
mkdir -p "$work"
family=$(cd "$family" && pwd)
base=$family/models/tiny-base/hf
domains="legal tutoring telemetry"
fresh=
trap '[ -z "$fresh" ] || rm -f "$fresh"' EXIT

# NAME MODEL [OPTIONS]: mean negative log-likelihoods on the eval texts as NAME.json
measure() {
  local name=$1 model=$2 domain
  shift 2
  [ -f "$work/$name.json" ] && return
  fresh=$work/$name.fresh
  for domain in general $domains; do
    # shellcheck disable=SC2086
    "$flywheel" perplexity "$model" --file "$family/text/$domain/eval.txt" --json $threads "$@" ||
      { rm -f "$fresh"; echo "breeding.sh: $name is not measured" >&2; return; }
  done > "$fresh" 2> "$work/$name.log"
  mv "$fresh" "$work/$name.json"
}

# The three fine-tunes with PARAMETERS each
specialists() { for domain in $domains; do printf '  - {model: "%s", parameters: {%s}}\n' "$family/models/$domain-full/hf" "$1"; done; }

# NAME, recipe on stdin: merges and measures
merged() {
  local name=$1
  cat > "$work/$name.yaml"
  [ -f "$work/$name.json" ] && return
  if [ ! -f "$work/$name.gguf" ]; then
    "$flywheel" merge "$work/$name.yaml" "$work/$name.gguf" > /dev/null 2> "$work/$name.log" ||
      { echo "breeding.sh: $name: $(tail -1 "$work/$name.log")" >&2; return; }
  fi
  measure "$name" "$work/$name.gguf"
}

# NAME METHOD PER-MODEL [MORE-YAML]: all three fine-tunes, differences from the base
from_base() { { echo "merge_method: $2"; echo "base_model: \"$base\""; echo "models:"; specialists "$3"; printf '%s' "${4:-}"; echo "dtype: float16"; } | merged "$1"; }

measure base "$base"
for domain in $domains; do measure "full-$domain" "$family/models/$domain-full/hf"; done
for domain in $domains; do measure "lora-$domain" "$base" --adapter "$family/adapters/$domain"; done
every_adapter=()
for domain in $domains; do every_adapter+=(--adapter "$family/adapters/$domain:0.4"); done
measure "adapters-together" "$base" "${every_adapter[@]}"

from_base linear linear "weight: 1"
from_base multislerp multislerp "weight: 1"
from_base karcher karcher ""
from_base task_arithmetic task_arithmetic "weight: 0.4"
from_base ties ties "weight: 1, density: 0.5"
from_base dare_linear dare_linear "weight: 0.4, density: 0.8" $'seed: 1\n'
from_base dare_ties dare_ties "weight: 0.4, density: 0.8" $'seed: 1\n'
from_base della della "weight: 0.4, density: 0.8" $'seed: 1\n'
from_base della_linear della_linear "weight: 0.4, density: 0.8" $'seed: 1\n'
from_base breadcrumbs breadcrumbs "weight: 0.4, density: 0.9, gamma: 0.01"
from_base breadcrumbs_ties breadcrumbs_ties "weight: 0.4, density: 0.9, gamma: 0.01"
from_base model_stock model_stock ""
from_base sce sce "" $'parameters: {select_topk: 0.5}\n'
for method in slerp nearswap nuslerp arcee_fusion; do
  {
    echo "merge_method: $method"
    case $method in
      nuslerp) printf 'models:\n  - {model: "%s", parameters: {weight: 1}}\n  - {model: "%s", parameters: {weight: 1}}\n' \
        "$family/models/legal-full/hf" "$family/models/tutoring-full/hf" ;;
      *) printf 'base_model: "%s"\nmodels:\n  - {model: "%s"}\n' "$family/models/legal-full/hf" "$family/models/tutoring-full/hf" ;;
    esac
    [ $method = slerp ] && echo "parameters: {t: 0.5}"
    [ $method = nearswap ] && echo "parameters: {t: 0.005}"
    echo "dtype: float16"
  } | merged "$method-legal-tutoring"
done
{
  echo "merge_method: passthrough"
  echo "slices:"
  for part in "legal 0 2" "tutoring 2 4" "telemetry 4 6"; do
    read -r domain first last <<< "$part"
    printf '  - sources: [{model: "%s", layer_range: [%s, %s]}]\n' "$family/models/$domain-full/hf" "$first" "$last"
  done
  echo "dtype: float16"
} | merged passthrough-stack

# Searches: calibration texts; numbers per model and group of layers.
search_texts=() tests=(--test "$family/text/general/eval.txt")
for domain in $domains; do
  search_texts+=(--text "$family/text/$domain/calibration.txt")
  tests+=(--test "$family/text/$domain/eval.txt")
done
evolved() {
  local name=$1 from=$2
  shift 2
  [ -f "$work/$name.json" ] && return
  # shellcheck disable=SC2086
  [ -f "$work/$name.gguf" ] || "$flywheel" evolve "$work/$from.yaml" "$work/$name.gguf" "${search_texts[@]}" "${tests[@]}" \
    --objective least-gain --generations "$generations" --windows 8 --plot "$work/$name.svg" $threads "$@" \
    > "$work/$name.txt" 2> "$work/$name.log" || { echo "breeding.sh: $name: $(tail -1 "$work/$name.log")" >&2; return; }
  measure "$name" "$work/$name.gguf"
}
evolved evolve-task_arithmetic task_arithmetic --groups 3 --step 0.15
evolved evolve-ties ties --groups 3 --step 0.15
# Attention, feed-forward and norms of every layer apart, from there.
evolved evolve-parts evolve-task_arithmetic.gguf --groups 6 --parts --step 0.05

# Mixtures of experts: prompts are paragraphs of the calibration texts.
mixture() { # NAME BASE EXPERTS_PER_TOKEN SHARPNESS
  [ -f "$work/$1.json" ] && return
  python3 - "$family" "$2" "$3" > "$work/$1.yaml" <<'PY'
import json, sys
family, base, used = sys.argv[1:]
def prompts(domain, most=40):
    paragraphs = open(f"{family}/text/{domain}/calibration.txt", encoding="utf-8").read().split("\n\n")
    long = [p for p in paragraphs if len(p) > 100]
    return [p[:1200] for p in long[:: max(1, len(long) // most)][:most]]
experts = [{"source_model": f"{family}/models/{d}-full/hf", "positive_prompts": prompts(d)} for d in ("legal", "tutoring", "telemetry")]
experts.append({"source_model": f"{family}/models/tiny-base/hf", "positive_prompts": prompts("general")})
print(json.dumps({"base_model": base, "gate_mode": "hidden", "experts_per_token": int(used), "experts": experts}))
PY
  # shellcheck disable=SC2086
  "$flywheel" moe "$work/$1.yaml" "$work/$1.gguf" --sharpness "$4" $threads > /dev/null 2> "$work/$1.log" ||
    { echo "breeding.sh: $1: $(tail -1 "$work/$1.log")" >&2; return; }
  measure "$1" "$work/$1.gguf"
}
mixture moe-base "$base" 2 4
for under in linear task_arithmetic evolve-task_arithmetic evolve-parts; do
  [ -f "$work/$under.gguf" ] && mixture "moe-$under" "$(cd "$work" && pwd)/$under.gguf" 2 4
done

python3 - "$work" <<'PY' | tee "$work/breeding.md"
import json, math, os, sys
work = sys.argv[1]
texts = ["general", "legal", "tutoring", "telemetry"]
def read(name):
    decoder, found, at = json.JSONDecoder(), [], 0
    text = open(f"{work}/{name}.json").read()
    while len(found) < 4:
        one, at = decoder.raw_decode(text, at)
        found.append(one["mean_nll"])
        at += 1
    return dict(zip(texts, found))
names = [f[:-5] for f in os.listdir(work) if f.endswith(".json") and f.count(".") == 1]
rows = {n: read(n) for n in names}
base = rows["base"]
kinds = {"full": "full", "lora": "lora"}
def gains(nll, kind):
    return {d: (base[d] - nll[d]) / (base[d] - rows[f"{kind}-{d}"][d]) for d in texts[1:] if f"{kind}-{d}" in rows}
def order(n):
    rank = 0 if n == "base" else 1 if n.startswith("full-") else 2 if n.startswith("lora-") else 3
    return (rank, -min(gains(rows[n], "full").values()) if rank == 3 else 0, n)
print("| model | general | legal | tutoring | telemetry | legal kept | tutoring kept | telemetry kept | least |")
print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
for n in sorted(names, key=order):
    kept = gains(rows[n], "lora" if n.startswith(("lora-", "adapters")) else "full")
    cells = [f"{math.exp(rows[n][t]):.3f}" for t in texts] + [f"{100 * kept[d]:.0f}%" if d in kept else "" for d in texts[1:]]
    print(f"| {n} | " + " | ".join(cells) + f" | {100 * min(kept.values()):.0f}% |")
PY
