"""`ced-edge pretrain`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ced_edge.errors import InputError
from distill.cli import DIRECTORY, PACK_HELP
from distill.pretrain import PretrainConfig

F = TypeVar("F", bound=Callable[..., Any])


def pretrain_options(command: F) -> F:
    """One flag per field of PretrainConfig."""
    for f in reversed(dataclasses.fields(PretrainConfig)):
        name, kind, text = f.name.replace("_", "-"), type(f.default), f.metadata["help"]
        if kind is bool:
            option = click.option(f"--{name}/--no-{name}", f.name, default=f.default, show_default=True, help=text)
        else:
            option = click.option(f"--{name}", f.name, type=kind, default=f.default, show_default=True, help=text)
        command = option(command)
    return command


@click.command()
@click.option("--pack", "pack_path", required=True, help=PACK_HELP)
@click.option("--out", required=True, type=DIRECTORY, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from the state in --out.")
@click.option("--device", default="cpu", show_default=True)
@pretrain_options
def pretrain(pack_path: str, out: Path, resume: bool, device: str, **config: Any) -> None:
    """Warm a student up on unlabelled audio (masked autoencoder); start training from it with --init OUT."""
    from ced_edge.files import folder_lock
    from distill.pretrain import pretrain as run
    from distill.progress import TrainingBar
    from distill.shards import Pack
    from distill.train import STATE_NAME

    chosen = PretrainConfig(**config)
    if (out / STATE_NAME).exists() and not resume:
        raise InputError(f"{out} holds a run already: add --resume to go on with it, or choose another --out")
    rank = os.environ.get("RANK", "0")
    with folder_lock(out / f".rank{rank}"), TrainingBar() as bar:
        click.echo(run(out, Pack.open(pack_path), chosen, device, bar))
