"""How much a batch changes the predictions of an int8 .onnx file.

    python benchmarks/int8_batches.py BUNDLE --data esc10.csv --split dev

ONNX Runtime measures the int8 ranges of activations once per call, over the whole batch. So the predictions for a clip
depend on the other clips of its batch. The table shows by how much, against one clip per call.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from start import run

from ced_edge.audio.clips import load_clip, read_manifest
from ced_edge.runtime.backends import load_backend
from ced_edge.runtime.bundle import read_bundle
from export.sounds import fill


@click.command()
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Manifest.")
@click.option("--split", help="Only rows with this in the `split` column.")
@click.option("--seconds", default=5.0, show_default=True, help="Length to which the clips are cut or repeated.")
def main(folder: Path, data: Path, split: str | None, seconds: float) -> None:
    """Measure and print."""
    bundle = read_bundle(folder)
    backend, rate_hz = load_backend(bundle.path(bundle.file(kind="int8", format="onnx"))), bundle.spec.frontend.rate_hz
    clips = read_manifest(data, split=split)
    waves = np.stack([fill(load_clip(clip, rate_hz, seconds), round(seconds * rate_hz)) for clip in clips])
    alone = np.concatenate([backend.run(wave[None])[0] for wave in waves])
    click.echo("| batch | largest difference of a probability | median over clips of their largest |\n|---|---|---|")
    for n in (2, 4, 8, 16, 32):
        together = np.concatenate([backend.run(waves[i : i + n])[0] for i in range(0, len(waves), n)])
        difference = np.abs(together - alone).max(axis=1)
        click.echo(f"| {n} | {difference.max():.4f} | {np.median(difference):.4f} |")


if __name__ == "__main__":
    run(main)
