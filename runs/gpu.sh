#!/usr/bin/env bash
# The first 25 minutes on one GPU (H100 or H200): packs, teaches, trains tiny with and without compile, evaluates, and
# records the GPU's references of the shipped student and of each teacher. It was never run on a GPU.
#   DATA=train.csv EVAL=eval.csv TEACHERS="mn04=mn04.pt yamnet=yamnet.tflite" runs/gpu.sh
# The result is OUT/gpu.json: the seconds of every stage, and the bare rates of teachers and student to compare with.
# A machine without soundfile and soxr, and without a network: fetch their wheels on another one, and carry them along.
#   pip download --no-deps --dest wheels soundfile soxr cffi pycparser click lightning-fabric lightning-utilities
#   WHEELS=wheels runs/gpu.sh      # these are 9 MB; torch, torchaudio, pyarrow and safetensors must be there
# Smaller sizes try it on a CPU: DEVICE=cpu WINDOWS=1x1 STEPS=2 BATCH=4 RATE_S=0.1 ... (tests/test_runs_gpu.py).
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:?a manifest of audio to train on} EVAL=${EVAL:?a manifest with labels} TEACHERS=${TEACHERS:?NAME=PATH ...}
OUT=${OUT:-runs/gpu} DEVICE=${DEVICE:-cuda} PYTHON=${PYTHON:-python3} STUDENT=${STUDENT:-students/tiny}
WINDOWS=${WINDOWS:-8x10} STEPS=${STEPS:-2000} BATCH=${BATCH:-128} RATE_S=${RATE_S:-5} RATE_BATCH=${RATE_BATCH:-128}
SECONDS_OF_VIEW=${SECONDS_OF_VIEW:-10}
WORKERS=${WORKERS:-$(($(nproc) > 2 ? $(nproc) - 1 : 1))}
mkdir -p "$OUT"
if [ -n "${WHEELS:-}" ]; then "$PYTHON" -m pip install --quiet --no-index --find-links "$WHEELS" --no-deps "$WHEELS"/*.whl; fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
edge=("$PYTHON" -m ced_edge)
read -ra names <<< "$TEACHERS"
teachers=("${names[@]/#/--teacher=}")

: > "$OUT/times.tsv"
stage() {  # NAME COMMAND...: run it, and note its seconds and its output
  local name=$1 start=$EPOCHREALTIME
  shift
  echo "gpu.sh: $name" >&2
  "$@" > "$OUT/$name.json"
  printf '%s\t%s\n' "$name" "$("$PYTHON" -c "print(round($EPOCHREALTIME - $start, 3))")" >> "$OUT/times.tsv"
}

stage rates "$PYTHON" runs/gpu_rates.py --device "$DEVICE" --batch "$RATE_BATCH" --seconds "$SECONDS_OF_VIEW" \
  --least "$RATE_S" "${teachers[@]}"
stage pack "${edge[@]}" pack "$DATA" --out "$OUT/pack" --workers "$WORKERS" --json
for dtype in fp32 bf16; do
  stage "teach-$dtype" "${edge[@]}" teach --pack "$OUT/pack" --out "$OUT/store-$dtype" --windows "$WINDOWS" \
    --device "$DEVICE" --workers "$WORKERS" --dtype "$dtype" --json "${teachers[@]}"
done
# One renderer: the same bytes on this device.
stage teach-one "${edge[@]}" teach --pack "$OUT/pack" --out "$OUT/store-one" --windows "$WINDOWS" \
  --device "$DEVICE" --workers 1 --json "${teachers[@]}"
diff -r --exclude=.lock "$OUT/store-fp32" "$OUT/store-one"
for compile in no-compile compile; do
  stage "train-$compile" "${edge[@]}" train --pack "$OUT/pack" --store "$OUT/store-fp32" --out "$OUT/$compile" \
    --size tiny --steps "$STEPS" --batch "$BATCH" --workers "$WORKERS" --device "$DEVICE" "--$compile" --json
done
stage evaluate "${edge[@]}" evaluate "$OUT/no-compile" --data "$EVAL" --device "$DEVICE" --json
# The references: exported files of any machine are held to them by `ced-edge check`.
stage reference-student "${edge[@]}" evaluate "$STUDENT" --data "$EVAL" --device "$DEVICE" --out "$OUT/reference" --json
stage reference-teachers "${edge[@]}" evaluate --data "$EVAL" --device "$DEVICE" --json "${teachers[@]}"

"$PYTHON" - "$OUT" <<'PY'
import json, sys
from pathlib import Path

out = Path(sys.argv[1])
times = dict(line.split("\t") for line in (out / "times.tsv").read_text().splitlines())
result = {"seconds": {name: float(s) for name, s in times.items()}}
for name in times:
    text = (out / f"{name}.json").read_text()
    result[name] = json.loads(text) if text.strip() else None
rates = {f"{name}, views/s": result[name]["views"] / result["seconds"][name] for name in times if "teach-" in name}
result["with_start_and_end"] = rates
(out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
print(out / "gpu.json")
PY
