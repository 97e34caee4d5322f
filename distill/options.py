"""Options that the training commands share, and how they become configs.

Nothing here imports torch: a wrong flag is refused at once, not after the seconds that torch takes to load.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ced_edge.errors import InputError
from ced_edge.files import read_toml
from ced_edge.options import FILE, FOLDER, F, options
from ced_edge.spec import N_CLASSES
from distill.teaching.views import ViewRecipe
from distill.training.config import C, Config


def config_options(kind: type[Config]) -> Callable[[F], F]:
    """One flag per field of a config. Values that are not given come from --config, else from the default."""

    def option(f: dataclasses.Field[Any]) -> Callable[[F], F]:
        name, of = f.name.replace("_", "-"), type(f.default)
        switch = f"--{name}/--no-{name}" if of is bool else f"--{name}"
        text = f"{f.metadata['help']}  [default: {f.default}]"
        # No default for click: a flag that is not given must not replace a value of --config.
        return click.option(switch, f.name, type=None if of is bool else of, default=None, help=text)

    toml = click.option("--config", type=FILE, help="TOML file with any of the flags below.")
    return options(toml, *map(option, dataclasses.fields(kind)))


def read_config(kind: type[C], config: Path | None, flags: dict[str, Any], **defaults: Any) -> C:
    """The values of the flags; else those of the TOML file; else `defaults`; else the config's own.

    Raises InputError that names every wrong value, NaN included.
    """
    names = {f.name for f in dataclasses.fields(kind)}
    given = {k: v for k, v in flags.items() if k in names and v is not None}
    written = kind.read(config, **defaults) if config else kind(**defaults)
    return kind.from_dict({**written.to_dict(), **given})


def _check_device(context: click.Context, option: click.Parameter, value: str) -> str:
    """Whether the machine has the device, only torch can find out, later."""
    if not re.fullmatch(r"cpu|(cuda|xpu)(:\d+)?|mps", value):
        raise click.BadParameter(f"unknown device {value!r}: choose cpu or cuda.", context, option)
    return value


pack_option = click.option(
    "--pack", "pack_path", required=True, help="Folder or URL of a pack, as `ced-edge pack` writes it."
)
device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    callback=_check_device,
    help="Where torch computes: cpu, cuda, or one GPU such as cuda:1.",
)


def dtype_option(choices: list[str], text: str) -> Callable[[F], F]:
    """--dtype, one of the choices; fp32 is the default."""
    return click.option("--dtype", type=click.Choice(choices), default="fp32", show_default=True, help=text)


init_option = click.option(
    "--init", help="Weights to start from: a file, a run, a folder, or a hub name (mispeech/ced-tiny)."
)
k_option = click.option(
    "-k", type=click.IntRange(1, N_CLASSES), default=20, show_default=True, help="Classes stored per view."
)
clips_per_shard_option = click.option(
    "--clips-per-shard", type=click.IntRange(1), default=1_024, show_default=True, help="Clips in a file of the pack."
)
strict_option = click.option("--strict", is_flag=True, help="Fail if any audio file cannot be used.")
resume_option = click.option("--resume", is_flag=True, help="Continue the run in --out from its last checkpoint.")

teacher_options = options(
    click.option(
        "--teacher", "teacher", multiple=True, metavar="NAME=PATH", help="A teacher's file, folder or hub name; repeat."
    ),
    click.option("--teachers", "teachers_toml", type=FILE, help="TOML file with one table per teacher."),
)

view_options = options(
    click.option("--windows", metavar="NxS,...", help="Epochs x seconds of the views, e.g. 20x2,4x5."),
    click.option("--views", "views_toml", type=FILE, help="TOML file with any field of the view recipe."),
    click.option("--view-seed", type=click.IntRange(0), help="Seed of all random numbers of the views.  [default: 0]"),
)

out_option = click.option("--out", required=True, type=FOLDER, help="Folder of the run.")


def parse_windows(text: str) -> tuple[tuple[int, float], ...]:
    """`20x2,4x5` -> ((20, 2.0), (4, 5.0))."""
    try:
        return tuple((int(n), float(s)) for n, s in (part.split("x") for part in text.split(",")))
    except ValueError as e:
        raise InputError(f"--windows {text}: give EPOCHSxSECONDS, joined by commas, e.g. 20x2,4x5") from e


def view_recipe(windows: str | None, toml: Path | None, seed: int | None, default: str) -> ViewRecipe:
    """The view recipe: the values of the flags, else those of the TOML file, else the windows `default`."""
    fields = {"windows": parse_windows(default), **(read_toml(toml) if toml else {})}
    if windows:
        fields["windows"] = parse_windows(windows)
    if seed is not None:
        fields["seed"] = seed
    return ViewRecipe.from_dict(fields)
