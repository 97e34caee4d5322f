"""Put a trained student into the repository and into the package.

    python runs/student_box.py RUN --pack held --store held-store   # both steps
    python runs/student_box.py                                      # the second step alone

1. RUN's weights go to students/tiny/model.safetensors as float16. The held-out clips give one temperature, which is
   folded into the head if it lowers the calibration error there, and a threshold per class.
2. The student in students/tiny is exported. The int8 files go to ced_edge/models/tiny, the bundle of the package.

Step 2 needs no audio, and gives the same predictions each time: tests/test_ced_edge_check_real.py.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ced_edge.audio.clips import read_manifest
from ced_edge.files import sha256_file
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import find_checkpoint, load_model, read_metadata, save_model
from ced_edge.proof.metrics import multi_hot
from ced_edge.runtime.bundle import PACKAGED, Bundle, read_bundle
from export.bundle import export_bundle
from export.config import ExportConfig

ROOT = Path(__file__).resolve().parents[1]
STUDENT = ROOT / "students" / "tiny" / "model.safetensors"


def ship(source: Path, pack_path: str, store_path: Path, labelled: Path | None, out: Path) -> dict[str, object]:
    """Step 1: write the student of a run as float16, and return what was measured on the held-out clips.

    The calibration error on the `labelled` clips is measured too. It decides nothing.
    """
    from distill.evaluation.agreement import agreement
    from distill.evaluation.calibration import best_temperature, calibration_error, thresholds, with_temperature
    from distill.packing.shards import Pack
    from distill.teaching.store import Store

    weights = find_checkpoint(source).weights
    model = load_model(weights)
    found = agreement(model, Pack.open(pack_path), Store.open(store_path))
    temperature = best_temperature(found.probs, found.target)
    errors = [calibration_error(with_temperature(found.probs, t), found.present) for t in (1.0, temperature)]
    chosen = temperature if errors[1] < errors[0] else 1.0
    dev = {} if labelled is None else {"calibration_error_dev": dev_errors(model, labelled, temperature)}
    divide_logits(model, chosen)
    measured = {
        "temperature": chosen,
        "best_temperature": temperature,
        "calibration_error": errors,
        "thresholds": thresholds(with_temperature(found.probs, chosen), found.present),
    }
    # The spec, the version and the commit are written anew; the recipe stays that of the training.
    keys = ("recipe", "step", "averaged_of", "float32_sha256")
    kept = {key: value for key, value in read_metadata(weights).items() if key in keys}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_model(out, model.half(), {"float32_sha256": sha256_file(weights), **kept, **measured})
    return {**measured, **dev, "kl": found.kl}


def dev_errors(model: CED, labelled: Path, temperature: float) -> list[float]:
    """Calibration errors on the classes of labelled clips, before and after a temperature."""
    from distill.evaluation.calibration import calibration_error, with_temperature
    from distill.evaluation.evaluate import evaluate

    found = evaluate(model, read_manifest(labelled, "dev"))
    targets = multi_hot([clip or () for clip in found.labels], found.probs.shape[1])
    there = targets.any(axis=0)
    return [
        calibration_error(with_temperature(found.probs[:, there], t), targets[:, there]) for t in (1.0, temperature)
    ]


def divide_logits(model: CED, temperature: float) -> None:
    """Fold a temperature into the head."""
    head = cast(nn.Linear, model.outputlayer[1])
    with torch.no_grad():
        head.weight /= temperature
        head.bias /= temperature


def box(student: Path, out: Path) -> Bundle:
    """Step 2: export the int8 files of a student."""
    export_bundle(student, out, ExportConfig(kinds=("int8",)))
    return read_bundle(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="a run, or a checkpoint")
    parser.add_argument("--pack", help="held-out clips")
    parser.add_argument("--store", type=Path, help="the teachers' predictions for them")
    parser.add_argument("--dev", type=Path, help="a manifest with labels, to measure the calibration error on")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.run is not None:
        if args.pack is None or args.store is None:
            parser.error("RUN needs --pack and --store: the held-out clips that give its thresholds")
        print(json.dumps(ship(args.run, args.pack, args.store, args.dev, STUDENT), indent=1))
    bundle = box(STUDENT, PACKAGED)
    print(f"{bundle.folder}: {', '.join(f'{file.name} {file.bytes / 1e6:.2f} MB' for file in bundle.files)}")


if __name__ == "__main__":
    main()
