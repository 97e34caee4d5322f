#!/usr/bin/env bash
# CED tiny by the published recipe on one GPU: pack, warm up, distil, export, check.
# It was never run here: it needs AudioSet, a GPU and a download of the teachers.
# DATA: a manifest (or AudioSet's own segment list) of audio to train on. EVAL: a manifest with labels. Both lie beside
# their audio.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:?a manifest of audio to train on} EVAL=${EVAL:?a manifest with labels} DEVICE=${DEVICE:-cuda}

# Published students start from a masked autoencoder. With BCE alone a student with random weights would not leave the
# cold-start plateau (docs/results.md).
ced-edge pack "$DATA" --out runs/ced-tiny/pack
ced-edge pretrain --pack runs/ced-tiny/pack --out runs/ced-tiny-warm --size tiny --seconds 10 --steps 100000 \
  --device "$DEVICE" --resume

# `distill` finds the pack in its folder and does not pack again.
ced-edge distill --config runs/ced_tiny.toml --views runs/ced_views.toml --init runs/ced-tiny-warm --name ced-tiny \
  --device "$DEVICE" --data "$DATA" --eval-data "$EVAL" \
  --teacher base=mispeech/ced-base --teacher small=mispeech/ced-small

ced-edge export runs/ced-tiny --int8 --data "$EVAL"
ced-edge check --bundle runs/ced-tiny/bundle --reference runs/ced-tiny/reference.json --data "$EVAL"
