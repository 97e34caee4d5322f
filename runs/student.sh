#!/usr/bin/env bash
# The student of the package, from audio to weights, in the background. When it was stopped, the same command continues
# it exactly. Everything runs at the lowest priority, and only when nothing else needs the cores.
# AUDIO has the folders that runs/student_split.py reads, TEACHERS has mn04_as_mAP_432.pt and yamnet_spectra_in.tflite.
#
# Part 1, wide: short views of all clips. Part 2, thin: long views of KEEP clips, fewer of them with common sounds.
# WIDE and THIN are the views of the parts; with another SEED they are other ones. INIT are weights to start from; with
# INIT= they are random. With PROCESSES=2, torchrun trains with two: on two cores that is faster than two threads.
# Every HOURS hours the training pauses for a measurement: WORK/PART/best has the curve and the best weights as float16.
set -euo pipefail
AUDIO=$(realpath "${AUDIO:?a folder of audio}") TEACHERS=$(realpath "${TEACHERS:?a folder of teachers}")
WORK=$(realpath -m "${WORK:-runs/student}") INIT=${INIT-students/tiny}
WIDE=${WIDE:-6x2} THIN=${THIN:-4x5,2x10} KEEP=${KEEP:-10000} SEED=${SEED:-0}
HOURS=${HOURS:-2} WORKERS=${WORKERS:-2} PROCESSES=${PROCESSES:-1} PYTHON=${PYTHON:-.venv/bin/python}
cd "$(realpath "$(dirname "$0")/..")"
export PYTHONPATH=$PWD
teachers=(--teacher "mn04=$TEACHERS/mn04_as_mAP_432.pt" --teacher "yamnet=$TEACHERS/yamnet_spectra_in.tflite")
held=(--pack "$WORK/held/pack" --store "$WORK/held/store")

idle() { chrt --idle 0 nice -n 19 "$@"; }

# MANIFEST PART WINDOWS: its clips, and the teachers' predictions for so many views of them.
teach() {
  idle "$PYTHON" -m ced_edge pack "$1" --audio-root "$AUDIO" --out "$WORK/$2/pack" --clips-per-shard 512
  idle "$PYTHON" -m ced_edge teach --pack "$WORK/$2/pack" --out "$WORK/$2/store" "${teachers[@]}" --windows "$3" \
    --view-seed "$SEED" --workers "$WORKERS"
}

# PART CONFIG INIT: train, in stretches that are measured.
train() {
  local part=$WORK/$1 code=124 launch=()
  [ "$PROCESSES" = 1 ] || launch=(-m torch.distributed.run --standalone --nproc-per-node "$PROCESSES")
  while [ "$code" = 124 ]; do # the code of `timeout` when the time is over; the run is saved
    code=0
    idle timeout --signal=TERM "${HOURS}h" "$PYTHON" "${launch[@]}" -m ced_edge train --config "$2" \
      ${3:+--init "$3"} --resume --pack "$part/pack" --store "$part/store" --out "$part/run" || code=$?
    case $code in 0 | 124) ;; *) exit "$code" ;; esac
    idle "$PYTHON" runs/student_stretch.py "$part/run" "${held[@]}" --out "$part/best"
  done
}

[ -f "$WORK/train.csv" ] || idle "$PYTHON" runs/student_split.py "$AUDIO" "$WORK"
teach "$WORK/held.csv" held 1x10
teach "$WORK/train.csv" wide "$WIDE"
train wide runs/student_wide.toml "$INIT"
[ -f "$WORK/thin.csv" ] || idle "$PYTHON" runs/student_thin.py "$WORK/train.csv" --out "$WORK/thin.csv" --keep "$KEEP" \
  --pack "$WORK/wide/pack" --store "$WORK/wide/store"
teach "$WORK/thin.csv" thin "$THIN"
train thin runs/student_thin.toml "$WORK/wide/run"
echo "To ship the student: $PYTHON runs/student_box.py $WORK/thin/best ${held[*]}"
