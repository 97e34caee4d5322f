#!/usr/bin/env bash
# The run behind docs/results.md, on 2 CPU cores: real teachers, real audio, and what each part of the method is worth.
# AUDIO holds esc10.csv, us8k.csv, pool.csv; TEACHERS holds mn04_as_mAP_432.pt and yamnet_spectra_in.tflite.
# Students c to g take STEPS steps each. A stage that is finished is not run again.
set -euo pipefail
cd "$(dirname "$0")/.."
AUDIO=${AUDIO:-../shared/audio} TEACHERS=${TEACHERS:-../shared/teachers} OUT=${OUT:-runs/real} STEPS=${STEPS:-1196}
mn04=(--teacher "mn04=$TEACHERS/mn04_as_mAP_432.pt")
both=("${mn04[@]}" --teacher "yamnet=$TEACHERS/yamnet_spectra_in.tflite")
windows=(--windows 8x2,2x5)
# NAME PACK STORE [more options]: train a student on one core, then evaluate it on the held-out splits.
student() {
  local name=$1 pack=$2 store=$3
  shift 3
  OMP_NUM_THREADS=1 ced-edge train --pack "$OUT/$pack" --store "$OUT/$store" --out "$OUT/$name" --size tiny --resume "$@"
  for set in esc10 us8k; do
    ced-edge evaluate "$OUT/$name" --data "$AUDIO/$set.csv" --split dev --out "$OUT/$name/$set" --json >"$OUT/$name/$set.json"
    python3 -c "import json, sys; r = json.load(open(sys.argv[1])); print(sys.argv[1], r['mean_ap'], r['top1_by_group'])" "$OUT/$name/$set.json"
  done
}
# Wait for two students that run side by side, one core each. Stop when one of them failed.
two() {
  wait "$1"
  wait "$2"
}

ced-edge pack "$AUDIO"/{esc10,us8k,pool}.csv --split train --out "$OUT/pack" --clips-per-shard 512
ced-edge pack "$AUDIO"/{esc10,us8k}.csv --split train --out "$OUT/pack-labelled" --clips-per-shard 512

ced-edge teach --pack "$OUT/pack" --out "$OUT/store-both" "${both[@]}" "${windows[@]}"
ced-edge teach --pack "$OUT/pack" --out "$OUT/store-clean" "${both[@]}" --clean
ced-edge teach --pack "$OUT/pack-labelled" --out "$OUT/store-labels" --labels
ced-edge teach --pack "$OUT/pack" --out "$OUT/store-mn04" "${mn04[@]}" "${windows[@]}"
ced-edge teach --pack "$OUT/pack-labelled" --out "$OUT/store-labelled" "${both[@]}" --windows 45x2,12x5

# All students take the same number of steps, nearly all of them on views that they see for the first time. There are
# fewer labelled clips, so each of them gets more views.
student c-consistent-ensemble pack store-both --steps "$STEPS" &
c=$!
student f-labels pack-labelled store-labels --steps "$STEPS" --windows 45x2,12x5 &
two $c $!
student d-clean-teacher pack store-clean --steps "$STEPS" "${windows[@]}" &
d=$!
student e-one-teacher pack store-mn04 --steps "$STEPS" &
two $d $!
# The labelled clips again, with the same number of views, but with the teachers' predictions instead of labels.
student g-ensemble-on-labelled-clips pack-labelled store-labelled --steps "$STEPS"

# The chosen recipe, once on all audio and once without UrbanSound8K, whose licence forbids commercial use. The second
# student is the one in students/tiny.
student chosen pack store-both --repeats 2 &
chosen=$!
student=("${both[@]}" "${windows[@]}" --data "$AUDIO/esc10.csv" --data "$AUDIO/pool.csv" --split train)
OMP_NUM_THREADS=1 ced-edge distill --size tiny --runs "$OUT" --name tiny-esc10-pool --clips-per-shard 512 --repeats 2 \
  "${student[@]}" --eval-data "$AUDIO/esc10.csv" --eval-split dev &
two $chosen $!
