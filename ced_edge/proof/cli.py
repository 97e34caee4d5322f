"""The subcommands that measure a bundle: `check` its accuracy against a reference, `bench` its speed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.figures import require_matplotlib
from ced_edge.machine import cpu_name
from ced_edge.proof.bounds import Bounds, read_bounds
from ced_edge.proof.targets import Target, install_advice, targets
from ced_edge.proof.worker import Worker
from ced_edge.runtime.backends import NotInstalled
from ced_edge.runtime.bundle import FORMATS, KINDS, read_bundle

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)


def bound_options(command: F) -> F:
    """One flag per bound."""
    for f in reversed(dataclasses.fields(Bounds)):
        command = click.option(f"--{f.name.replace('_', '-')}", f.name, type=float, help=f.metadata["help"])(command)
    return command


def target_options(command: F) -> F:
    """BUNDLE... and which of their files, on what."""
    command = click.option("--runtime", help="One of onnxruntime, ai-edge-litert, tflite-runtime, tensorflow.")(command)
    command = click.option("--file", "name", metavar="NAME", help="Only the model file of this name.")(command)
    command = click.option("--kind", type=click.Choice(KINDS), help="Only files of this kind.")(command)
    command = click.option("--format", type=click.Choice(FORMATS), help="Only files of this format.")(command)
    return click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=FILE)(command)


def find_targets(bundles: tuple[Path, ...], flags: dict[str, Any]) -> list[Target]:
    """The model files that the flags ask for, on every runtime that is there."""
    wanted = {k: flags[k] for k in ("runtime", "name", "kind", "format")}
    return [t for folder in dict.fromkeys(bundles) for t in targets(read_bundle(folder), **wanted)]


@click.command()
@target_options
@click.option("--reference", "reference_path", required=True, type=FILE, help="As `ced-edge evaluate --out` wrote it.")
@click.option("--data", required=True, multiple=True, type=FILE, help="Manifest it was made of; repeat.")
@click.option("--split", help="Only rows with this in the `split` column.")
@click.option("--audio-root", type=DIRECTORY, help="What file names are relative to, if not the manifest.")
@click.option("--stream", is_flag=True, help="Let each clip be heard in pieces too: nothing may change.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@bound_options
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="HTML file to write, with plots.")
@click.option("--json", "as_json", is_flag=True)
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
    """Hold every model file of a bundle, on every runtime here, against the checkpoint's reference.

    Exit code 1 when a bound is broken. Bounds for all kinds of files come from the flags, else from
    [tool.ced-edge.check] of ./pyproject.toml (keys as the flags, with _; tables fp32, int8 and int8-static for
    one kind), else from the defaults; `inf` is no bound.
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
        click.echo(f"report: {report}", err=True)
    named = zip(tables.names([r.file for r in results]), results, strict=True)
    lost = [f"{name} on {r.runtime}: {what}" for name, r in named for what in r.broken]
    if lost:
        count = "1 bound is" if len(lost) == 1 else f"{len(lost)} bounds are"
        raise CedEdgeError(f"{count} broken: {'; '.join(lost)}")


@click.command()
@target_options
@click.option("--threads", default="1", show_default=True, help="Numbers of threads: 4, 1,2,4 or 1-4.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Visits to each file.")
@click.option("--repeats", type=click.IntRange(1), default=10, show_default=True, help="Timed calls in each visit.")
@click.option("--cold", type=click.IntRange(1), default=3, show_default=True, help="Processes started for cold_ms.")
@click.option("--profile", "profiled", is_flag=True, help="Time per type of operator, on the fewest threads.")
@click.option("--json", "as_json", is_flag=True)
def bench(
    bundles: tuple[Path, ...],
    threads: str,
    rounds: int,
    repeats: int,
    cold: int,
    profiled: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Latency of a full window (waveform to probabilities), load time and memory of every model file.

    The files take turns over several rounds, so that a busy machine hits all of them alike. `spread` is how far
    apart the rounds were: a smaller difference between two files tells nothing. RTF is time per time heard.
    """
    from ced_edge.proof import bench as measure
    from ced_edge.proof import report as tables

    wanted: list[Target] = []
    missing: list[Target] = []
    for target in find_targets(bundles, flags):
        if target.runtime:
            wanted.append(target)
        else:
            missing.append(target)
    if not wanted:
        raise InputError(install_advice(missing))
    for target in missing:
        click.echo(f"left out: {install_advice([target])}", err=True)
    counts = parse_threads(threads)
    timings = measure.bench(wanted, counts, rounds, repeats, cold)
    if not as_json:
        click.echo(f"{cpu_name()}; one window a call, from waveform to probabilities")
        click.echo(tables.text_table(tables.BENCH_HEAD, tables.bench_rows(timings)))
    profiles = []
    for target in wanted if profiled else []:
        try:
            with Worker(target, counts[0]) as worker:
                found = worker.profile()
        except NotInstalled as e:
            click.echo(str(e), err=True)
            continue
        where = {"file": str(target.bundle.path(target.file)), "runtime": worker.runtime, "threads": counts[0]}
        profiles.append(where | found.to_dict())
        if not as_json:
            click.echo(f"\n{target.file.name} on {worker.runtime}, threads: {counts[0]}")
            click.echo("\n".join(tables.profile_notes(found)))
            click.echo(tables.text_table(tables.OP_HEAD, tables.op_rows(found)))
    if as_json:
        result = {"cpu": cpu_name(), "timings": [t.to_dict() for t in timings], "profiles": profiles}
        click.echo(json.dumps(result, indent=1))


def parse_threads(text: str) -> list[int]:
    """`2`, `1,2,4` or `1-4` -> numbers of threads. Raises InputError."""
    try:
        parts = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in text.split(",")]
        ends = [(int(p[1]), int(p[2] or p[1])) for p in parts if p]
        if None in parts or not all(1 <= first <= last <= 256 for first, last in ends):
            raise ValueError
        found = [n for first, last in ends for n in range(first, last + 1)]
    except ValueError as e:
        raise InputError(f"--threads {text}: give numbers from 1 on, such as 4, 1,2,4 or 1-4") from e
    return sorted(set(found))


@contextlib.contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda n: None
        return
    with click.progressbar(length=total, label=name, file=sys.stderr) as bar:
        yield bar.update
