#!/usr/bin/env bash
# The demonstration, and an evaluation of its student from outside: some minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
ced-edge distill --size tiny --name smoke
ced-edge evaluate runs/smoke --data runs/smoke/data/manifest.csv --split eval
