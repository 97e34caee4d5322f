#!/usr/bin/env bash
# The real run of the README on CPU: real teachers, real audio, and what each part of the method is worth.
# AUDIO holds esc10.csv, us8k.csv, pool.csv; TEACHERS holds mn04_as_mAP_432.pt and yamnet_spectra_in.tflite.
# STEPS are those of each comparison (c to f); what is finished is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
AUDIO=${AUDIO:-../shared/audio} TEACHERS=${TEACHERS:-../shared/teachers} OUT=${OUT:-runs/real} STEPS=${STEPS:-400}
mn04=(--teacher "mn04=$TEACHERS/mn04_as_mAP_432.pt")
both=("${mn04[@]}" --teacher "yamnet=$TEACHERS/yamnet_spectra_in.tflite")
views=(--windows 4x2)
same=(--size tiny --steps "$STEPS" --resume)
student() { # NAME PACK STORE [more options]: train, then evaluate on the held-out splits
  local name=$1 pack=$2 store=$3
  shift 3
  ced-edge train --pack "$OUT/$pack" --store "$OUT/$store" --out "$OUT/$name" "${same[@]}" "$@"
  for set in esc10 us8k; do
    echo "$name on $set:"
    ced-edge evaluate "$OUT/$name" --data "$AUDIO/$set.csv" --split dev --out "$OUT/$name/$set" --json >"$OUT/$name/$set.json"
    python3 -c "import json,sys; r = json.load(open(sys.argv[1])); print(r['mean_ap'], r['top1_by_group'])" "$OUT/$name/$set.json"
  done
}

ced-edge pack "$AUDIO"/{esc10,us8k,pool}.csv --split train --out "$OUT/pack" --clips-per-shard 512
ced-edge pack "$AUDIO"/{esc10,us8k}.csv --split train --out "$OUT/pack-labelled" --clips-per-shard 512

ced-edge teach --pack "$OUT/pack" --out "$OUT/store-both" "${both[@]}" "${views[@]}"
ced-edge teach --pack "$OUT/pack" --out "$OUT/store-mn04" "${mn04[@]}" "${views[@]}"
ced-edge teach --pack "$OUT/pack" --out "$OUT/store-clean" "${both[@]}" --clean
ced-edge teach --pack "$OUT/pack-labelled" --out "$OUT/store-labels" --labels

student c-consistent-ensemble pack store-both
student d-clean-teacher pack store-clean "${views[@]}"
student e-one-teacher pack store-mn04
student f-labels pack-labelled store-labels "${views[@]}"

# The recipe of students/tiny-esc10-pool: without UrbanSound8K, whose licence forbids commercial use.
ced-edge distill --size tiny --runs "$OUT" --name chosen --clips-per-shard 512 --windows 8x2,2x5 --repeats 2 "${both[@]}" \
  --data "$AUDIO/esc10.csv" --data "$AUDIO/pool.csv" --split train --eval-data "$AUDIO/esc10.csv" --eval-split dev
