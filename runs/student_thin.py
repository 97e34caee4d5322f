"""Leave out most clips with common sounds: teaching and training are dear, and music and speech fill most pools.

    python runs/student_thin.py train.csv --pack pack --store store --keep 7000 --out thin.csv

PACK is the pack of the manifest, and STORE holds at least one epoch of predictions. The clips with the rarest classes
are kept, and an even part of the others, as `distill/training/balance.py` weighs them. No label is needed.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

import numpy as np

from ced_edge.arrays import Float64
from ced_edge.errors import CedEdgeError
from ced_edge.files import atomic_path
from distill.evaluation.agreement import check_store
from distill.packing.shards import Pack, read_shard
from distill.teaching.store import Store
from distill.training.balance import clip_weights, times

POWER = 0.5


def chances(weights: Float64, keep: int) -> Float64:
    """(clips,) weights -> chances to be kept, at most 1 and otherwise proportional to them, whose sum is `keep`."""
    low, high = 0.0, 1.0 / weights.min()
    for _ in range(60):
        scale = (low + high) / 2.0
        low, high = (scale, high) if np.minimum(1.0, scale * weights).sum() < keep else (low, scale)
    return np.asarray(np.minimum(1.0, high * weights))


def kept_files(pack: Pack, store: Store, keep: int) -> set[str]:
    """Names of the files of the clips that are kept."""
    weights = np.concatenate(clip_weights(pack, store, POWER))
    counts = times([chances(weights, keep)], np.array([0]), 0.5)[0]
    ids = [clip.id for shard in pack.shards for clip in read_shard(pack, shard)]
    # A long file became several clips: NAME#START.
    return {re.sub(r"#[0-9.]+$", "", name) for name, count in zip(ids, counts, strict=True) if count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--pack", required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--keep", type=int, required=True, help="clips to keep")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    pack, store = Pack.open(args.pack), Store.open(args.store)
    check_store(pack, store)
    if not 1 <= args.keep <= pack.clips:
        parser.error(f"--keep must be within 1 and {pack.clips}")
    files = kept_files(pack, store, args.keep)
    with args.manifest.open(newline="") as f:
        rows = list(csv.DictReader(f))
    kept = [row for row in rows if row["filename"] in files]
    if not kept:
        raise SystemExit(f"{args.manifest} names no clip of {args.pack}")
    with atomic_path(args.out) as temporary, temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    print(f"{args.out}: {len(kept)} of {len(rows)} clips")


if __name__ == "__main__":
    try:
        main()
    except CedEdgeError as e:
        raise SystemExit(f"student_thin.py: {e}") from e
