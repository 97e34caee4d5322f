"""After a stretch of the student's training: measure it, and keep the best weights as float16.

    python runs/student_stretch.py RUN --pack held --store held-store --out OUT

Adds a row to OUT/curve.csv: steps, views, and the agreement with the teachers on held-out clips, also at -30 dB. The
weights with the lowest KL so far are in OUT/model.safetensors, ready for runs/student_box.py.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from ced_edge.network.checkpoint import load_model, read_metadata, save_model
from distill.evaluation.agreement import agreement
from distill.packing.shards import Pack
from distill.teaching.store import Store
from distill.training.loop import MODEL_NAME

QUIET_DB = -30.0
COLUMNS = ("steps", "views", "kl", "mean_ap", "quiet_kl", "quiet_mean_ap")


def measure(run: Path, pack: Pack, store: Store) -> dict[str, float]:
    """The row of the curve for the weights of a run."""
    metadata = read_metadata(run)
    steps = int(metadata["step"])
    row: dict[str, float] = {"steps": steps, "views": steps * metadata["recipe"]["train"]["batch"]}
    for prefix, level_db in (("", 0.0), ("quiet_", QUIET_DB)):
        found = agreement(load_model(run), pack, store, level_db=level_db).to_dict()
        row |= {f"{prefix}{key}": round(found[key], 4) for key in ("kl", "mean_ap")}
    return row


def add(run: Path, out: Path, row: dict[str, float]) -> bool:
    """Write the row, and the weights if they are the best so far; whether they are. A row of the same steps goes."""
    file, rows = out / "curve.csv", []
    if file.exists():
        with file.open(newline="") as f:
            rows = [{k: float(v) for k, v in old.items()} for old in csv.DictReader(f)]
    rows = [old for old in rows if old["steps"] != row["steps"]]
    best = all(row["kl"] < old["kl"] for old in rows)
    out.mkdir(parents=True, exist_ok=True)
    if best:
        metadata = {key: value for key, value in read_metadata(run).items() if key in ("recipe", "step")}
        save_model(out / MODEL_NAME, load_model(run).half(), metadata)
    with file.open("w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows({k: f"{old[k]:g}" for k in COLUMNS} for old in [*rows, row])
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pack", required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    row = measure(args.run, Pack.open(args.pack), Store.open(args.store))
    print(row, "the best so far" if add(args.run, args.out, row) else "not the best", flush=True)


if __name__ == "__main__":
    main()
