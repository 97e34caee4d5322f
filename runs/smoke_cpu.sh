#!/usr/bin/env bash
# The whole pipeline, stage by stage, on synthesised sounds: minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
ced-edge distill --size tiny --name smoke
ced-edge evaluate runs/smoke --data runs/smoke/data/manifest.csv --split eval
