"""Options that the training commands share, and how they become configs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ced_edge.errors import InputError
from ced_edge.files import read_toml
from distill.teaching.views import ViewRecipe
from distill.training.config import C, Config

F = TypeVar("F", bound=Callable[..., Any])


DIRECTORY = click.Path(file_okay=False, path_type=Path)


FILE = click.Path(path_type=Path)


PACK_HELP = "Folder (or URL) of a pack, as `ced-edge pack` writes it."


def options(*added: Callable[[F], F]) -> Callable[[F], F]:
    """Several click options as one decorator, in the order of the help page."""
    return lambda command: functools.reduce(lambda c, option: option(c), reversed(added), command)


def config_options(kind: type[Config]) -> Callable[[F], F]:
    """One flag per field of a config; what is not given comes from --config, else from the default."""

    def option(f: dataclasses.Field[Any]) -> Callable[[F], F]:
        name, of = f.name.replace("_", "-"), type(f.default)
        switch = f"--{name}/--no-{name}" if of is bool else f"--{name}"
        text = f"{f.metadata['help']}  [default: {f.default}]"
        return click.option(switch, f.name, type=None if of is bool else of, default=None, help=text)

    toml = click.option("--config", type=FILE, help="TOML file with any of the flags below.")
    return options(toml, *map(option, dataclasses.fields(kind)))


def read_config(kind: type[C], config: Path | None, flags: dict[str, Any], **defaults: Any) -> C:
    """Flags over the TOML file over `defaults`."""
    names = {f.name for f in dataclasses.fields(kind)}
    given = {k: v for k, v in flags.items() if k in names and v is not None}
    written = kind.read(config, **defaults) if config else kind(**defaults)
    return kind.from_dict({**written.to_dict(), **given})


teacher_options = options(
    click.option(
        "--teacher", "teacher", multiple=True, metavar="NAME=PATH", help="A teacher's file, folder or hub name; repeat."
    ),
    click.option("--teachers", "teachers_toml", type=FILE, help="TOML file with one table per teacher."),
)


view_options = options(
    click.option("--windows", metavar="NxS,...", help="Epochs x seconds of the views, e.g. 20x2,4x5."),
    click.option("--views", "views_toml", type=FILE, help="TOML file with any field of the view recipe."),
    click.option("--view-seed", type=int, help="Decides all views.  [default: 0]"),
)


data_options = options(
    click.option("--split", help="Only rows with this in the `split` column."),
    click.option("--audio-root", type=DIRECTORY, help="What file names are relative to, if not the manifest."),
)


def parse_windows(text: str) -> tuple[tuple[int, float], ...]:
    """`20x2,4x5` -> ((20, 2.0), (4, 5.0))."""
    try:
        return tuple((int(n), float(s)) for n, s in (part.split("x") for part in text.split(",")))
    except ValueError as e:
        raise InputError(f"--windows {text}: give EPOCHSxSECONDS, joined by commas, e.g. 20x2,4x5") from e


def view_recipe(windows: str | None, toml: Path | None, seed: int | None, default: str) -> ViewRecipe:
    """The view recipe: flags over the TOML file over the windows `default`."""
    fields = {"windows": parse_windows(default), **(read_toml(toml) if toml else {})}
    if windows:
        fields["windows"] = parse_windows(windows)
    if seed is not None:
        fields["seed"] = seed
    return ViewRecipe.from_dict(fields)
