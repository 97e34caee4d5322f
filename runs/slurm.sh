#!/usr/bin/env bash
# Distillation under Slurm, here on two nodes of eight GPUs: sbatch runs/slurm.sh. It was never run here.
# Each node starts one torchrun, and torchrun starts one process per GPU. DATA and OUT must be on a shared disk.
#SBATCH --job-name=ced-edge
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=128
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
# --requeue: a job that lost a node starts again. Every stage goes on where it was.
# --signal: two minutes before the time is over, training gets SIGTERM and saves itself.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
export DATA=${DATA:?a manifest of audio to train on} EVAL=${EVAL:?a manifest with labels} OUT=${OUT:-runs/slurm}
export GPUS=${SLURM_GPUS_ON_NODE:-8} NODES=$SLURM_JOB_NUM_NODES
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29500
export MASTER
# multi_gpu.sh does the stages. NODE tells the first machine from the others.
srun --kill-on-bad-exit=1 bash -c 'NODE=$SLURM_NODEID exec runs/multi_gpu.sh'
