#!/usr/bin/env bash
# CED tiny from published teachers, one GPU: fetch, distil, export, check. Never run here: it wants AudioSet and a hub.
# DATA: a manifest (or AudioSet's own segment list) of audio to learn from, EVAL: one with labels; each beside its audio.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:?a manifest of audio to learn from} EVAL=${EVAL:?a manifest with labels} DEVICE=${DEVICE:-cuda}
ced-edge distill --size tiny --name ced-tiny --device "$DEVICE" --data "$DATA" --eval-data "$EVAL" \
  --teacher base=mispeech/ced-base --teacher small=mispeech/ced-small --windows 20x10 --repeats 2 --batch 128
ced-edge evaluate runs/ced-tiny --data "$EVAL" --device "$DEVICE" --out runs/ced-tiny
ced-edge export runs/ced-tiny --int8 --data "$EVAL"
ced-edge check runs/ced-tiny/bundle --reference runs/ced-tiny/reference.json --data "$EVAL"
