#!/usr/bin/env bash
# Bytes and KL divergence of every type and method, on the small models of the shared family. See usage().
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
usage: bench/quality.sh [-m MODELS] [-t TYPES] [-M METHODS] [-w FOLDER]

Quantizes tiny-base and the three fine-tunes (every matrix in the one type, importance from calibration text), compares
them with their f16 originals (llama-perplexity's protocol, 256 tokens, the first 100 windows of the eval texts) and
writes FOLDER/quality.md and FOLDER/quality-MODEL.svg. What is there already is not made again, so that an interrupted
run goes on and parts can be run one by one.

  -m MODELS   default: "tiny-base legal-full tutoring-full telemetry-full"
  -t TYPES    default: all that are measured for the documentation; "4.5bpw" is a budget
  -M METHODS  default: "rtn search greedy gptq awq"
  -w FOLDER   default: build/quality
FLYWHEEL names the command (build/bin/flywheel), FAMILY the folder of models and texts (../shared/family).
TEXT
}

models="tiny-base legal-full tutoring-full telemetry-full"
types="Q8_0 Q6_K Q5_K Q5_1 Q5_0 Q4_K Q4_1 Q4_0 IQ4_NL IQ4_XS MXFP4 NVFP4 Q3_K IQ3_S IQ3_XXS Q2_K IQ2_S IQ2_XS IQ2_XXS TQ2_0 8.5bpw 6.5bpw 5.5bpw 4.5bpw 4.0bpw 3.5bpw 3.0bpw 2.6bpw"
methods="rtn search greedy gptq awq"
work=build/quality
while getopts "m:t:M:w:h" option; do
  case $option in
    m) models=$OPTARG ;; t) types=$OPTARG ;; M) methods=$OPTARG ;; w) work=$OPTARG ;;
    h) usage; exit 0 ;; *) usage >&2; exit 2 ;;
  esac
done
flywheel=${FLYWHEEL:-build/bin/flywheel}
family=${FAMILY:-../shared/family}
[ -x "$flywheel" ] || { echo "quality.sh: $flywheel is not there; build it or set FLYWHEEL" >&2; exit 1; }
[ -d "$family/models" ] || { echo "quality.sh: skipped: $family has no models; set FAMILY" >&2; exit 0; }
mkdir -p "$work"
fresh_json=
trap '[ -z "$fresh_json" ] || rm -f "$fresh_json"' EXIT

source_of() { [ "$1" = tiny-base ] && echo "$family/models/tiny-base/gguf/tiny-base-f16.gguf" || echo "$family/models/$1/hf"; }
# Which texts a model is for: the base all, a fine-tune its own.
domains_of() { [ "$1" = tiny-base ] && echo "general legal tutoring telemetry" || echo "${1%-full}"; }

for model in $models; do
  from=$(source_of "$model")
  calibration=() texts=()
  for domain in $(domains_of "$model"); do
    calibration+=(--calibration "$family/text/$domain/calibration.txt")
    texts+=(--text "$family/text/$domain/eval.txt")
  done
  imatrix=$work/$model.imatrix.gguf
  if [ ! -f "$imatrix" ]; then
    cat $(printf '%s\n' "${calibration[@]}" | grep -v '^--') > "$work/$model.calibration.txt"
    "$flywheel" imatrix "$from" "$work/$model.calibration.txt" -o "$imatrix" --chunk 256 > /dev/null
  fi
  fresh=()
  for type in $types; do
    for method in $methods; do
      name=$model.$type.$method
      out=$work/$name.gguf
      [ -f "$work/$name.json" ] && continue
      if [ ! -f "$out" ]; then
        how=(--type "$type" --pure)
        [[ $type == *bpw ]] && how=(--target-bpw "${type%bpw}")
        needs=(--imatrix "$imatrix")
        [[ $type == *bpw || $method == gptq || $method == awq ]] && needs+=("${calibration[@]}")
        # Not every method makes every type.
        "$flywheel" quantize "$from" "$out" "${how[@]}" --method "$method" "${needs[@]}" > /dev/null 2> "$work/$name.log" ||
          { echo "quality.sh: $name: $(tail -1 "$work/$name.log")" >&2; continue; }
      fi
      fresh+=("$out")
    done
  done
  if [ ${#fresh[@]} -gt 0 ]; then
    fresh_json=$work/$model.fresh.json
    "$flywheel" evaluate "${fresh[@]}" --baseline "$from" "${texts[@]}" --windows 100 --json > "$fresh_json"
    python3 - "$fresh_json" <<'PY'
import json, sys
for one in json.load(open(sys.argv[1]))["models"]:
    json.dump(one, open(one["model"][:-len("gguf")] + "json", "w"))
PY
    rm "$fresh_json"
  fi
done

python3 - "$work" "$models" "$types" "$methods" <<'PY' | tee "$work/quality.md"
import json, os, sys
work, models, types, methods = sys.argv[1], *(a.split() for a in sys.argv[2:])
# Mean KL divergence with ggml's quantizer, same bytes, importance and protocol.
peer_types = "Q8_0 Q6_K Q5_K Q4_K Q4_0 IQ4_NL IQ4_XS Q3_K IQ3_S Q2_K".split()
peer = {
    "general": [.00020, .00083, .00278, .01021, .01508, .01191, .01274, .04842, .04830, .21477],
    "legal": [.00027, .00110, .00382, .01428, .02056, .01652, .01774, .06703, .06555, .28682],
    "tutoring": [.00012, .00050, .00167, .00653, .00914, .00784, .00860, .03010, .02805, .14410],
    "telemetry": [.00006, .00028, .00096, .00357, .00542, .00446, .00494, .01813, .01709, .11924],
}
peers = {
    "tiny-base": [sum(k) / 4 for k in zip(*peer.values())],
    "legal-full": [.00037, .00153, .00519, .02046, .02868, .02142, .02279, .09048, .08376, .44126],
    "tutoring-full": [.00011, .00047, .00160, .00623, .00875, .00755, .00790, .03027, .02884, .13899],
    "telemetry-full": [.00005, .00021, .00065, .00254, .00549, .00275, .00345, .01419, .01476, .10261],
}
for model in models:
    print(f"\n### {model}\n")
    print("| type | bytes | " + " | ".join(methods) + " | ggml | best / ggml |")
    print("|---|---:|" + "---:|" * (len(methods) + 2))
    for t in types:
        found = {}
        for m in methods:
            path = f"{work}/{model}.{t}.{m}.json"
            if os.path.exists(path):
                found[m] = json.load(open(path))
        if not found:
            continue
        other = peers[model][peer_types.index(t)] if t in peer_types else None
        best = min(v["kl"]["value"] for v in found.values())
        cells = [f'{found[m]["kl"]["value"]:.5f}' if m in found else "" for m in methods]
        cells += [f"{other:.5f}", f"{best / other:.2f}"] if other else ["", ""]
        size = max(v["bytes"] for v in found.values())
        print(f"| {t} | {size} | " + " | ".join(cells) + " |")
PY
for model in $models; do
  made=("$work/$model".*.greedy.gguf)
  [ -f "${made[0]}" ] || continue
  texts=()
  for domain in $(domains_of "$model"); do texts+=(--text "$family/text/$domain/eval.txt"); done
  [ -f "$work/quality-$model.svg" ] && [ "$work/quality-$model.svg" -nt "${made[-1]}" ] ||
    "$flywheel" evaluate "${made[@]}" --baseline "$(source_of "$model")" "${texts[@]}" --windows 100 \
      --plot "$work/quality-$model.svg" > /dev/null
done
