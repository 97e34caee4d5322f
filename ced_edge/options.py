"""Options that several command lines share, so that a flag means the same in all of them, and the default bundle."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ced_edge.audio.level import MAX_GAIN_DB, Gain
from ced_edge.errors import InputError
from ced_edge.runtime.backends import packages
from ced_edge.runtime.bundle import BUNDLE_NAME, FORMATS, KINDS, PACKAGED
from ced_edge.spec import N_CLASSES

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(path_type=Path, readable=False)  # a command reports each file that it cannot read by itself


def find_bundle(bundle: Path | None) -> Path:
    """The folder given with --bundle; else the newest of runs/*/bundle; else the one that comes with the package.

    Reports which one is used when none was given. Raises InputError when there is none.
    """
    if bundle is not None:
        return bundle
    files = sorted(Path("runs").glob(f"*/bundle/{BUNDLE_NAME}"), key=lambda p: p.stat().st_mtime)
    if not files and (PACKAGED / BUNDLE_NAME).is_file():
        log.info("using the bundle of this package, %s", PACKAGED)
        return PACKAGED
    if not files:
        raise InputError("no bundle in runs/*/bundle: give one with --bundle, or write one with `ced-edge export`")
    log.info("using the bundle %s", files[-1].parent)
    return files[-1].parent


class Number(click.FloatRange):
    """A number in a range. click's own range accepts NaN, and infinity where there is no upper end."""

    def __init__(self, *args: Any, infinite: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.infinite = infinite

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number) or (math.isinf(number) and not self.infinite):
            self.fail(f"{value} is not a {'' if self.infinite else 'finite '}number.", param, ctx)
        return number


SECONDS = Number(min=0, min_open=True)


def _gain(context: click.Context, option: click.Parameter, text: str) -> Gain:
    """A gain in dB, or `auto`."""
    return "auto" if text == "auto" else Number(-MAX_GAIN_DB, MAX_GAIN_DB).convert(text, option, context)


def several_option(flag: str, name: str, choices: Sequence[str], **attributes: Any) -> Callable[[F], F]:
    """An option for words joined by commas, each of them one of `choices`; its value is a tuple without repeats."""

    def split(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
        words = None if value is None else tuple(dict.fromkeys(word.strip() for word in value.split(",")))
        for word in words or ():
            if word not in choices:
                known = ", ".join(map(repr, choices))
                raise click.BadParameter(f"{word!r} is not one of {known}.", context, option)
        return words

    return click.option(flag, name, callback=split, metavar=f"[{'|'.join(choices)}],...", **attributes)


def options(*added: Callable[[F], F]) -> Callable[[F], F]:
    """Several click options as one decorator, in the order of the help page."""
    return lambda command: functools.reduce(lambda c, option: option(c), reversed(added), command)


_BUNDLE = "[default: the newest runs/*/bundle, else the package's own]"
bundle_option = click.option("--bundle", type=FOLDER, help=f"Folder that `ced-edge export` wrote.  {_BUNDLE}")
bundles_option = click.option(
    "--bundle", "bundles", type=FOLDER, multiple=True, help=f"Folder that `ced-edge export` wrote; repeat.  {_BUNDLE}"
)

file_options = options(
    click.option("--kind", type=click.Choice(KINDS), help="Arithmetic of the model file.  [default: any]"),
    click.option("--format", type=click.Choice(FORMATS), help="Format of the model file.  [default: any]"),
    click.option(
        "--runtime",
        type=click.Choice([package for format in FORMATS for package in packages(format)]),
        help="Python package that runs the model file.  [default: any installed one]",
    ),
)
"""Which model file of a bundle, and what runs it."""

data_options = options(
    click.option("--split", help="Only rows with this in the `split` column, or in `fold`."),
    click.option("--audio-root", type=FOLDER, help="Folder that file names start from.  [default: the manifest's]"),
)
"""How the manifests of clips are read."""

threads_option = click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of one prediction."
)


def given_flags(names: Collection[str]) -> list[str]:
    """The flags among these parameters of the running command that were given on the command line."""
    context = click.get_current_context()
    return [
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]


def json_option(text: str = "Print the result as one JSON object.") -> Callable[[F], F]:
    """--json: results as JSON on stdout."""
    return click.option("--json", "as_json", is_flag=True, help=text)


tagging_options = options(
    bundle_option,
    file_options,
    threads_option,
    click.option("--window", "window_s", type=SECONDS, help="Length of a window in seconds, at most the bundle's."),
    click.option("--hop", "hop_s", type=SECONDS, help="Seconds from the start of a window to the start of the next."),
    click.option(
        "--gain",
        "gain_db",
        callback=_gain,
        default="0",
        show_default=True,
        metavar="[DB|auto]",
        help="dB to make the sound louder by. auto raises each quiet window by itself, by 40 dB at most.",
    ),
    click.option("--top", type=click.IntRange(1, N_CLASSES), default=5, show_default=True, help="Tags to show."),
    click.option(
        "--threshold", type=Number(0, 1), default=0.0, show_default=True, help="Lowest probability to show, 0 to 1."
    ),
)
"""What `tag` and `listen` have in common."""
