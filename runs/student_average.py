"""The average of two students' weights: often better than either of them, if one was trained on from the other.

    python runs/student_average.py NEW OLD --share 0.7 --out average    # 0.7 * NEW + 0.3 * OLD

`ced-edge agreement` says which share is best on held-out clips. Source: arXiv 2109.01903 (Wortsman et al.).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ced_edge.errors import CedEdgeError
from ced_edge.files import sha256_file
from ced_edge.network.checkpoint import find_checkpoint, load_model, read_metadata, save_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", type=Path, help="a run, or a checkpoint")
    parser.add_argument("old", type=Path, help="what NEW was trained on from")
    parser.add_argument("--share", type=float, required=True, help="of NEW, from 0 to 1")
    parser.add_argument("--out", type=Path, required=True, help="a folder for model.safetensors")
    args = parser.parse_args()
    if not 0.0 <= args.share <= 1.0:
        parser.error(f"--share must be within 0 and 1, not {args.share:g}")
    files = [find_checkpoint(path).weights for path in (args.new, args.old)]
    new, old = (load_model(file).float() for file in files)
    if new.spec != old.spec:
        raise SystemExit(f"{args.new} and {args.old} are students of different sizes")
    averaged = new.state_dict()
    for name, weights in old.state_dict().items():
        if weights.is_floating_point():
            averaged[name].lerp_(weights, 1.0 - args.share)
    kept = {key: value for key, value in read_metadata(files[0]).items() if key in ("recipe", "step")}
    args.out.mkdir(parents=True, exist_ok=True)
    averaged_of = {"share": args.share, "sha256": [sha256_file(file) for file in files]}
    save_model(args.out / "model.safetensors", new, {**kept, "averaged_of": averaged_of})


if __name__ == "__main__":
    try:
        main()
    except CedEdgeError as e:
        raise SystemExit(f"student_average.py: {e}") from e
