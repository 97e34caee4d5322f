"""The subcommands that measure a bundle: `check` compares its accuracy with a reference, `bench` measures its speed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.figures import require_matplotlib
from ced_edge.machine import cpu_name, redraws
from ced_edge.options import (
    FILE,
    F,
    Number,
    bundles_option,
    data_options,
    file_options,
    find_bundle,
    json_option,
    options,
    threads_option,
)
from ced_edge.proof.bounds import Bounds, read_bounds
from ced_edge.proof.targets import Target, install_advice, targets
from ced_edge.proof.worker import Worker
from ced_edge.runtime.backends import NotInstalled
from ced_edge.runtime.bundle import read_bundle

log = logging.getLogger(__name__)

target_options = options(
    bundles_option,
    file_options,
    click.option("--file", "name", metavar="NAME", help="Only the model file of this name."),
)
"""Which model files are measured, and on what."""


def bound_options(command: F) -> F:
    """One flag per bound."""
    for f in reversed(dataclasses.fields(Bounds)):
        kind = Number(min=0, infinite=True)
        command = click.option(f"--{f.name.replace('_', '-')}", f.name, type=kind, help=f.metadata["help"])(command)
    return command


def find_targets(bundles: tuple[Path, ...], flags: dict[str, Any]) -> list[Target]:
    """The model files that fit the flags, once per installed runtime. Without `bundles`, those of the default one."""
    wanted = {k: flags[k] for k in ("runtime", "name", "kind", "format")}
    folders = dict.fromkeys(bundles) or [find_bundle(None)]
    return [t for folder in folders for t in targets(read_bundle(folder), **wanted)]


@click.command()
@target_options
@click.option("--reference", "reference_path", required=True, type=FILE, help="Folder of `ced-edge evaluate --out`.")
@click.option("--data", required=True, multiple=True, type=FILE, help="Manifest of the reference's clips; repeat.")
@data_options
@click.option("--stream", is_flag=True, help="Predict each clip in pieces too: no prediction may change.")
@threads_option
@bound_options
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="HTML file to write, with plots.")
@json_option()
def check(
    bundles: tuple[Path, ...],
    reference_path: Path,
    data: tuple[Path, ...],
    split: str | None,
    audio_root: Path | None,
    stream: bool,
    threads: int,
    report: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Compare every model file of a bundle, on every installed runtime, with the checkpoint's reference.

    The exit code is 1 if a bound is broken. Bounds come from the flags; else from [tool.ced-edge.check] of
    ./pyproject.toml (the same names, with _ for -; tables fp32, int8 and int8-static for one kind of file); else from
    the defaults of each kind. `inf` means no bound.
    """
    from ced_edge.audio.clips import read_clips
    from ced_edge.proof import report as tables
    from ced_edge.proof.check import check as run
    from ced_edge.proof.reference import read_reference

    limits = read_bounds(Path(), {f.name: flags[f.name] for f in dataclasses.fields(Bounds)})
    if report:
        require_matplotlib("--report")
    wanted, reference = find_targets(bundles, flags), read_reference(reference_path)
    clips = read_clips(data, split, audio_root)
    with _bar("check", len(clips)) as progress:
        results = run(wanted, reference, clips, limits, stream=stream, threads=threads, progress=progress)
    if as_json:
        facts = {k: getattr(reference, k) for k in ("data_hash", "weights_hash", "labels_hash", "metrics")}
        click.echo(json.dumps({"reference": facts, "results": [r.to_dict() for r in results]}, indent=1))
    else:
        click.echo(tables.text_table(tables.CHECK_HEAD, tables.check_rows(results)))
        click.echo("\n".join(tables.notes(results)))
    if report:
        tables.write_html(report, results, reference)
        log.info("report: %s", report)
    if partly := [r for r in results if r.unchecked]:
        counts = f"{len(partly)} of {len(results)}"
        log.warning("some bounds of %s files could not be checked: compared with %s", counts, partly[0].compared_with)
    named = zip(tables.names([r.file for r in results]), results, strict=True)
    broken = [f"{name} on {r.runtime}: {bound}" for name, r in named for bound in r.broken]
    if broken:
        count = "1 bound is" if len(broken) == 1 else f"{len(broken)} bounds are"
        raise CedEdgeError(f"{count} broken: {'; '.join(broken)}")


def parse_threads(text: str) -> list[int]:
    """`2`, `1,2,4` or `1-4` -> numbers of threads, ascending. Raises InputError."""
    parts = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in text.split(",")]
    ends = [(int(p[1]), int(p[2] or p[1])) for p in parts if p]
    if None in parts or not all(1 <= first <= last <= 256 for first, last in ends):
        raise InputError(f"--threads {text}: give numbers from 1 to 256, such as 4, 1,2,4 or 1-4")
    return sorted({n for first, last in ends for n in range(first, last + 1)})


@click.command()
@target_options
@click.option(
    "--threads",
    default="1",
    show_default=True,
    callback=lambda context, option, text: parse_threads(text),
    help="Threads of one prediction, one or several numbers: 4, 1,2,4 or 1-4.",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Visits to each file.")
@click.option("--repeats", type=click.IntRange(1), default=10, show_default=True, help="Timed calls in each visit.")
@click.option("--cold", type=click.IntRange(1), default=3, show_default=True, help="Processes started for cold_ms.")
@click.option("--profile", "profiled", is_flag=True, help="Time per type of operator, on the fewest threads.")
@json_option()
def bench(
    bundles: tuple[Path, ...],
    threads: list[int],
    rounds: int,
    repeats: int,
    cold: int,
    profiled: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Latency of a full window (waveform to probabilities), load time and memory of every model file.

    Every round measures each file once, so that other load on the machine slows all of them alike. `spread` is the
    difference between the rounds: a smaller difference between two files means nothing. RTF is computing time per
    time of audio.
    """
    from ced_edge.proof import bench as measure
    from ced_edge.proof import report as tables

    found = find_targets(bundles, flags)
    wanted, missing = [t for t in found if t.runtime], [t for t in found if not t.runtime]
    if not wanted:
        raise InputError(install_advice(missing))
    for target in missing:
        log.warning("left out: %s", install_advice([target]))
    timings = measure.bench(wanted, threads, rounds, repeats, cold)
    if not as_json:
        click.echo(f"{cpu_name()}; one window a call, from waveform to probabilities")
        click.echo(tables.text_table(tables.BENCH_HEAD, tables.bench_rows(timings)))
    profiles = []
    for target in wanted if profiled else []:
        try:
            with Worker(target, threads[0]) as worker:
                profile = worker.profile()
        except NotInstalled as e:
            log.warning("%s", e)
            continue
        where = {"file": str(target.bundle.path(target.file)), "runtime": worker.runtime, "threads": threads[0]}
        profiles.append(where | profile.to_dict())
        if not as_json:
            click.echo(f"\n{target.file.name} on {worker.runtime}, threads: {threads[0]}")
            click.echo("\n".join(tables.profile_notes(profile)))
            click.echo(tables.text_table(tables.OP_HEAD, tables.op_rows(profile)))
    if as_json:
        result = {"cpu": cpu_name(), "timings": [t.to_dict() for t in timings], "profiles": profiles}
        click.echo(json.dumps(result, indent=1))


@contextlib.contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr if it is a terminal; else nothing."""
    if not redraws(sys.stderr):
        yield lambda n: None
        return
    with click.progressbar(length=total, label=name, file=sys.stderr) as bar:
        yield bar.update
