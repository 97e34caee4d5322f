"""The subcommands that run a bundle on files: `tag`, and `info`, which shows what the bundle holds."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ced_edge.audio.level import Gain
from ced_edge.errors import CedEdgeError, InputError, printable
from ced_edge.files import csv_line
from ced_edge.machine import cores, redraws
from ced_edge.options import FILE, bundle_option, find_bundle, given_flags, json_option, tagging_options
from ced_edge.runtime.bundle import Bundle, read_bundle
from ced_edge.spec import is_number

if TYPE_CHECKING:
    from ced_edge.runtime.tag_files import Tagged
    from ced_edge.runtime.tagger import Tags

log = logging.getLogger(__name__)

_SHOW_PROGRESS_S = 1.0
_BAR_COLUMNS = 60
"""A bar that wraps cannot be drawn again."""


@click.command()
@bundle_option
@json_option("Print bundle.json.")
def info(bundle: Path | None, as_json: bool) -> None:
    """Show what a bundle holds, after checking every file of it."""
    read = read_bundle(find_bundle(bundle))
    click.echo(json.dumps(read.to_dict(), indent=1) if as_json else _info_text(read))


def _info_text(b: Bundle) -> str:
    front = b.spec.frontend
    shapes = {"waveform": f"(batch, {b.window_samples})", "mel": f"(batch, {front.n_mels}, {b.window_frames})"}
    metrics = (b.reference or {}).get("metrics", {})
    rows = [
        ("bundle", str(b.folder)),
        ("model", f"CED {b.spec.name}: width {b.spec.width}, {b.spec.heads} heads, {b.spec.depth} blocks"),
        ("window", f"{b.window_s:g} s = {b.window_samples} samples at {front.rate_hz} Hz"),
        ("input", f"{b.input} {shapes[b.input]} float32"),
        ("output", f"{b.output} (batch, {b.spec.n_classes}) float32"),
        ("checkpoint", b.checkpoint_sha256),
        ("labels", b.labels_hash),
        *(
            (f"reference {name}", f"{value:g}" if isinstance(value, float) else f"{value!r:.40}")
            for name, value in metrics.items()
            if is_number(value)
        ),
        *((f"made with {name}", version) for name, version in b.versions.items()),
    ]
    width = max(len(f.name) for f in b.files)
    files = [f"{f.name:{width}}  {f.kind:11}  {f.bytes / 1e6:6.2f} MB  {f.quantisation}" for f in b.files]
    return "\n".join([*(f"{name:22} {value}" for name, value in rows), "", *files])


@click.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@tagging_options
@click.option("--jobs", type=click.IntRange(1), help="Files at a time.  [default: one per core]")
@json_option("Print one JSON object per file, each on a line.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: a row per window and tag.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="PNG to write for one file: its spectrogram above a timeline of the tags with the highest peaks. By default in"
    " windows of 2 s, and 10 tags.",
)
def tag(
    files: tuple[Path, ...],
    window_s: float | None,
    hop_s: float | None,
    gain_db: Gain,
    top: int,
    threshold: float,
    jobs: int | None,
    as_json: bool,
    as_csv: bool,
    plot: Path | None,
    bundle: Path | None,
    threads: int,
    **file: str | None,
) -> None:
    """Tag audio files of any format, rate and length. In a folder, all audio files are tagged; - is stdin.

    A long file is cut into windows of --window seconds, one every --hop seconds (by default windows of the bundle's
    length, without overlap). The tags of the whole file are the mean over its windows. A file that cannot be used is
    reported on stderr and skipped, and the exit code is then 1.
    """
    from ced_edge.figures import require_matplotlib
    from ced_edge.runtime.level_watch import faults
    from ced_edge.runtime.plot import HOP_S, ROWS, WINDOW_S, plot_tags
    from ced_edge.runtime.tag_files import is_pipe, tag_files, walk
    from ced_edge.runtime.tagger import Tagger

    if as_json and as_csv:
        raise InputError("--json and --csv: choose one")
    # A name such as --plot dog.wav would overwrite the recording.
    if plot is not None and plot.suffix.lower() != ".png":
        raise InputError(f"--plot {plot} writes a PNG: give it a name that ends in .png")
    unread: list[OSError] = []
    paths = walk(files, unread.append)
    for error in unread:
        log.error("cannot read the folder %s: %s", error.filename, error.strerror)
    if plot is not None:
        require_matplotlib("--plot")
        if len(paths) != 1:
            raise InputError(f"--plot draws one file, not {len(paths)}")
        if is_pipe(paths[0]):
            raise InputError(f"--plot reads its file several times: write {paths[0]} to a file first")
    tagger = Tagger(find_bundle(bundle), threads=threads, **file)
    bad, workers = 0, jobs or max(1, cores() // threads)
    write = _csv_writer(top, threshold) if as_csv else _writer(as_json, top, threshold)
    with _progress() as progress:
        for result in tag_files(tagger, paths, window_s, hop_s, workers, progress, gain_db):
            progress(None)
            if result.error is not None:
                bad += 1
                log.error("%s", result.error)
                continue
            write(result)
            for fault in faults(result.tags):
                log.info("%s: %s", result.path, fault)
            if plot is not None:
                drawn: Sequence[Tags] = result.tags
                if window_s is None and hop_s is None:
                    shortest = min(WINDOW_S, tagger.bundle.window_s)
                    drawn = tagger.tag_file(result.path, shortest, min(HOP_S, shortest), gain_db)
                rows = top if given_flags(["top"]) else ROWS
                plot_tags(plot, result.path, drawn, tagger.bundle.spec.frontend, rows)
    if bad or unread:
        folders = f", and {len(unread)} folder{'s' * (len(unread) > 1)} not read" if unread else ""
        raise CedEdgeError(f"{bad} of {len(paths)} files could not be tagged{folders}")


def _writer(as_json: bool, top: int, threshold: float) -> Callable[[Tagged], None]:
    """A function that prints the tags of a file as text, or as a line of JSON."""
    from ced_edge.runtime.clock import clock
    from ced_edge.runtime.show import level_dict, level_text, tag_dicts, tag_text

    def write(result: Tagged) -> None:
        tags, whole = result.tags, result.whole
        if as_json:
            windows = [
                {"start_s": t.start_s, "end_s": t.end_s, **level_dict(t.level), "tags": tag_dicts(t, top, threshold)}
                for t in tags
            ]
            fields = {"file": str(result.path), "seconds": whole.end_s, **level_dict(whole.level)}
            click.echo(json.dumps({**fields, "tags": tag_dicts(whole, top, threshold), "windows": windows}))
            return
        click.echo(f"{printable(str(result.path))}  {clock(whole.end_s)}")
        click.echo(f"  {'all':21}  {level_text(whole.level)}  {tag_text(whole, top, threshold)}")
        for t in tags if len(tags) > 1 else ():
            times = f"{clock(t.start_s):>9} - {clock(t.end_s):>9}"
            click.echo(f"  {times}  {level_text(t.level)}  {tag_text(t, top, threshold)}")

    return write


def _csv_writer(top: int, threshold: float) -> Callable[[Tagged], None]:
    """A function that prints the tags of a file as rows of CSV."""

    def put(*row: object) -> None:
        click.echo(csv_line(row), nl=False)

    def write(result: Tagged) -> None:
        for t in result.tags:
            for label, p in t.top(top, threshold):
                put(result.path, t.start_s, t.end_s, label.index, label.mid, label.name, round(p, 6))

    put("file", "start_s", "end_s", "index", "mid", "label", "prob")
    return write


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[float | None], None]]:
    """A bar on the terminal's stderr, from the first second on.

    Yields a function to call with the share that is done, or with None before another line is printed.
    """
    start, shown, bar = time.monotonic(), 0, None
    has_room = redraws(sys.stderr) and shutil.get_terminal_size().columns >= _BAR_COLUMNS
    with contextlib.ExitStack() as at_exit:

        def update(share: float | None) -> None:
            nonlocal shown, bar
            if share is None:
                if bar is not None:
                    click.echo("\r\x1b[K", nl=False, err=True)
            elif has_room and time.monotonic() - start > _SHOW_PROGRESS_S:
                if bar is None:
                    bar = at_exit.enter_context(click.progressbar(length=1_000, file=sys.stderr))
                bar.update(round(1_000 * share) - shown)
                shown = round(1_000 * share)

        yield update
