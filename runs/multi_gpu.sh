#!/usr/bin/env bash
# Distillation on many GPUs, stage by stage. A shard is the unit of work, and the store has the same bytes that one
# process would write. It was never run here: it needs GPUs.
# NODES machines run this script with the same MASTER (host:port), a shared folder OUT, and NODE=0, 1, ...
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:?a manifest of audio to train on} EVAL=${EVAL:?a manifest with labels} OUT=${OUT:-runs/multi-gpu}
GPUS=${GPUS:-8} NODES=${NODES:-1} MASTER=${MASTER:-localhost:29500}
launch=(torchrun --nproc-per-node "$GPUS" --nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "$MASTER" -m ced_edge)

# Only the first machine packs. The others wait for index.json, which `pack` writes last.
if [ "${NODE:-0}" = 0 ]; then ced-edge pack "$DATA" --out "$OUT/pack"; fi
until [ -f "$OUT/pack/index.json" ]; do sleep 10; done

"${launch[@]}" teach --pack "$OUT/pack" --out "$OUT/store" --windows 20x10 --device cuda \
  --teacher base=mispeech/ced-base --teacher small=mispeech/ced-small
"${launch[@]}" train --pack "$OUT/pack" --store "$OUT/store" --out "$OUT" --size tiny --batch 1024 --device cuda --resume

if [ "${NODE:-0}" = 0 ]; then
  ced-edge evaluate "$OUT" --data "$EVAL" --device cuda --out "$OUT"
  ced-edge export "$OUT" --int8 --data "$EVAL"
fi
