#!/usr/bin/env bash
# The student of the package, from audio to bundle, in the background: many hours on two cores. When it was stopped, the
# same command continues it exactly. Everything runs at the lowest priority, and only when nothing else needs the cores.
# AUDIO has the folders that runs/student_split.py reads, TEACHERS has mn04_as_mAP_432.pt and yamnet_spectra_in.tflite.
# Every HOURS hours the training pauses for a measurement: WORK/best has the curve and the best weights as float16.
# WINDOWS are the views to teach, the first ones first. INIT are weights to start from: "" starts from random ones.
set -euo pipefail
AUDIO=$(realpath "${AUDIO:?a folder of audio}") TEACHERS=$(realpath "${TEACHERS:?a folder of teachers}")
WORK=$(realpath -m "${WORK:-runs/student}")
CONFIG=$(realpath "${CONFIG:-$(dirname "$0")/student.toml}") HOURS=${HOURS:-2} WORKERS=${WORKERS:-2} PYTHON=${PYTHON:-.venv/bin/python}
WINDOWS=${WINDOWS:-16x2 50x2,8x5,3x10} INIT=${INIT-students/tiny}
here=$(realpath "$(dirname "$0")/..")
cd "$here"
export PYTHONPATH=$here
idle() { chrt --idle 0 nice -n 19 "$PYTHON" "$@"; }
teachers=(--teacher "mn04=$TEACHERS/mn04_as_mAP_432.pt" --teacher "yamnet=$TEACHERS/yamnet_spectra_in.tflite")

[ -f "$WORK/train.csv" ] || idle runs/student_split.py "$AUDIO" "$WORK"
for part in train held; do
  idle -m ced_edge pack "$WORK/$part.csv" --audio-root "$AUDIO" --out "$WORK/pack-$part" --clips-per-shard 512
done
idle -m ced_edge teach --pack "$WORK/pack-held" --out "$WORK/store-held" "${teachers[@]}" --windows 1x10 --workers "$WORKERS"
# First the epochs that training needs first. The last ones have the length that is exported. With TEACH=no, another
# process fills the store, and training begins at once.
for windows in $WINDOWS; do
  [ "${TEACH:-yes}" = no ] || idle -m ced_edge teach --pack "$WORK/pack-train" --out "$WORK/store" "${teachers[@]}" --windows "$windows" --workers "$WORKERS"
done

finished=
until [ "$finished" ]; do
  code=0
  timeout --signal=TERM "${HOURS}h" chrt --idle 0 nice -n 19 "$PYTHON" -m ced_edge train --config "$CONFIG" \
    --pack "$WORK/pack-train" --store "$WORK/store" --out "$WORK/run" --resume ${INIT:+--init "$INIT"} || code=$?
  case $code in
    0) finished=1 ;;
    124) ;;                # the time of this stretch is over, and the run is saved
    75) sleep 600 ;;       # another process still teaches
    *) exit "$code" ;;
  esac
  if [ -f "$WORK/run/model.safetensors" ]; then
    idle runs/student_stretch.py "$WORK/run" --pack "$WORK/pack-held" --store "$WORK/store-held" --out "$WORK/best"
  fi
done
echo "$WORK/best/model.safetensors is the student. To ship it:"
echo "  $PYTHON runs/student_box.py $WORK/best --pack $WORK/pack-held --store $WORK/store-held"
