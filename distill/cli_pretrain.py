"""`ced-edge pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ced_edge.errors import InputError
from distill.cli import DIRECTORY, PACK_HELP, config_options, read_config
from distill.config import PretrainConfig


@click.command()
@click.option("--pack", "pack_path", required=True, help=PACK_HELP)
@click.option("--out", required=True, type=DIRECTORY, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from the state in --out.")
@click.option("--device", default="cpu", show_default=True)
@config_options(PretrainConfig)
def pretrain(pack_path: str, out: Path, resume: bool, device: str, config: Path | None, **flags: Any) -> None:
    """Warm a student up on unlabelled audio (masked autoencoder); start training from it with --init OUT."""
    from distill.loop import STATE_NAME
    from distill.pipeline import process, run_lock
    from distill.pretrain import pretrain as run
    from distill.progress import TrainingBar
    from distill.shards import Pack

    chosen = read_config(PretrainConfig, config, flags)
    if (out / STATE_NAME).exists() and not resume:
        raise InputError(f"{out} holds a run already: add --resume to go on with it, or choose another --out")
    with run_lock(out), TrainingBar() as bar:
        weights = run(out, Pack.open(pack_path), chosen, device, bar)
    if process()[0] == 0:
        click.echo(weights)
