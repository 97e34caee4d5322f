#!/usr/bin/env bash
# Distillation on many GPUs, stage by stage. A shard is the unit of work, and the store has the same bytes that one
# process would write. It was never run here: it needs GPUs.
# NODES machines run this script with the same MASTER (host:port), a shared folder OUT, and NODE=0, 1, ...
# For two machines of 8 GPUs:  MASTER=first:29500 NODES=2 NODE=0 runs/multi_gpu.sh    on the machine `first`
#                              MASTER=first:29500 NODES=2 NODE=1 runs/multi_gpu.sh    on the other one
# runs/slurm.sh does this under Slurm. docs/scale.md has the arithmetic: GPUs, processor cores and hours.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:?a manifest of audio to train on} EVAL=${EVAL:?a manifest with labels} OUT=${OUT:-runs/multi-gpu}
GPUS=${GPUS:-8} NODES=${NODES:-1} MASTER=${MASTER:-localhost:29500}
# Other values try it on CPUs, where there is no GPU.
DEVICE=${DEVICE:-cuda} WINDOWS=${WINDOWS:-20x10} BATCH=${BATCH:-1024} STEPS=${STEPS:-0}
# Processes that decode and render for each GPU: all cores but one for each GPU's own process.
CORES=$(nproc)
WORKERS=${WORKERS:-$((CORES / GPUS > 2 ? CORES / GPUS - 1 : 1))}
read -ra TEACHERS <<< "${TEACHERS:---teacher base=mispeech/ced-base --teacher small=mispeech/ced-small}"
launch=(torchrun --nproc-per-node "$GPUS" --nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "$MASTER" -m ced_edge)

# Only the first machine packs. The others wait for index.json, which `pack` writes last.
if [ "${NODE:-0}" = 0 ]; then ced-edge pack "$DATA" --out "$OUT/pack"; fi
until [ -f "$OUT/pack/index.json" ]; do sleep 10; done

"${launch[@]}" teach --pack "$OUT/pack" --out "$OUT/store" --windows "$WINDOWS" --device "$DEVICE" \
  --workers "$WORKERS" "${TEACHERS[@]}"
"${launch[@]}" train --pack "$OUT/pack" --store "$OUT/store" --out "$OUT" --size tiny --batch "$BATCH" \
  --steps "$STEPS" --workers "$WORKERS" --device "$DEVICE" --resume

if [ "${NODE:-0}" = 0 ]; then
  ced-edge evaluate "$OUT" --data "$EVAL" --device "$DEVICE" --out "$OUT"
  ced-edge export "$OUT" --int8 --data "$EVAL"
fi
