"""The subcommands that run a bundle: `tag` files, `listen` to a stream, and show `info` about the bundle."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ced_edge.audio.base import MAX_RATE_HZ, MIN_RATE_HZ
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.machine import cores
from ced_edge.options import (
    FILE,
    SECONDS,
    Number,
    bundle_option,
    file_options,
    find_bundle,
    given_flags,
    json_option,
    options,
    threads_option,
)
from ced_edge.runtime.bundle import Bundle, read_bundle
from ced_edge.spec import N_CLASSES, is_number

if TYPE_CHECKING:
    from ced_edge.runtime.listen import ListenStats
    from ced_edge.runtime.tag_files import Tagged

log = logging.getLogger(__name__)

_SHOW_PROGRESS_S = 1.0

tagging_options = options(
    bundle_option,
    file_options,
    threads_option,
    click.option("--window", "window_s", type=SECONDS, help="Length of a window in seconds, at most the bundle's."),
    click.option("--hop", "hop_s", type=SECONDS, help="Seconds from the start of a window to the start of the next."),
    click.option("--top", type=click.IntRange(1, N_CLASSES), default=5, show_default=True, help="Tags to show."),
    click.option(
        "--threshold", type=Number(0, 1), default=0.0, show_default=True, help="Lowest probability to show, 0 to 1."
    ),
)
"""What `tag` and `listen` have in common."""


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
    help="PNG to write for one file: its spectrogram above a timeline of its top tags.",
)
def tag(
    files: tuple[Path, ...],
    window_s: float | None,
    hop_s: float | None,
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
    """Tag audio files of any format, rate and length. In a folder, all audio files are tagged.

    A long file is cut into windows of --window seconds, one every --hop seconds (by default windows of the bundle's
    length, without overlap). The tags of the whole file are the mean over its windows. A file that cannot be used is
    reported on stderr and skipped, and the exit code is then 1.
    """
    from ced_edge.figures import require_matplotlib
    from ced_edge.runtime.plot import plot_tags
    from ced_edge.runtime.tag_files import tag_files, walk
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
    tagger = Tagger(find_bundle(bundle), threads=threads, **file)
    bad = 0
    write = _csv_writer(top, threshold) if as_csv else _writer(as_json, top, threshold)
    with _progress() as progress:
        for result in tag_files(tagger, paths, window_s, hop_s, jobs or max(1, cores() // threads), progress):
            progress(None)
            if result.error is not None:
                bad += 1
                log.error("%s", result.error)
                continue
            write(result)
            if plot is not None:
                plot_tags(plot, result.path, result.tags, tagger.bundle.spec.frontend, top)
    if bad or unread:
        folders = f", and {len(unread)} folder{'s' * (len(unread) > 1)} not read" if unread else ""
        raise CedEdgeError(f"{bad} of {len(paths)} files could not be tagged{folders}")


def _writer(as_json: bool, top: int, threshold: float) -> Callable[[Tagged], None]:
    """A function that prints the tags of a file as text, or as a line of JSON."""
    from ced_edge.runtime.show import clock, tag_dicts, tag_text
    from ced_edge.runtime.tagger import Tags, mean_probs

    def write(result: Tagged) -> None:
        tags = result.tags
        whole = Tags(0.0, tags[-1].end_s, mean_probs(tags))
        if as_json:
            windows = [{"start_s": t.start_s, "end_s": t.end_s, "tags": tag_dicts(t, top, threshold)} for t in tags]
            fields = {"file": str(result.path), "seconds": whole.end_s, "tags": tag_dicts(whole, top, threshold)}
            click.echo(json.dumps({**fields, "windows": windows}))
            return
        click.echo(f"{result.path}  {clock(whole.end_s)}")
        click.echo(f"  {'all':21}  {tag_text(whole, top, threshold)}")
        for t in tags if len(tags) > 1 else ():
            click.echo(f"  {clock(t.start_s):>9} - {clock(t.end_s):>9}  {tag_text(t, top, threshold)}")

    return write


def _csv_writer(top: int, threshold: float) -> Callable[[Tagged], None]:
    """A function that prints the tags of a file as rows of CSV."""

    def put(*row: object) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(row)
        click.echo(line.getvalue(), nl=False)

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
    with contextlib.ExitStack() as at_exit:

        def update(share: float | None) -> None:
            nonlocal shown, bar
            if share is None:
                if bar is not None:
                    click.echo("\r\x1b[K", nl=False, err=True)
            elif sys.stderr.isatty() and time.monotonic() - start > _SHOW_PROGRESS_S:
                if bar is None:
                    bar = at_exit.enter_context(click.progressbar(length=1_000, file=sys.stderr))
                bar.update(round(1_000 * share) - shown)
                shown = round(1_000 * share)

        yield update


@click.command()
@click.argument("source", required=False)
@tagging_options
@click.option(
    "--rate",
    "rate_hz",
    type=click.IntRange(MIN_RATE_HZ, MAX_RATE_HZ),
    default=16_000,
    show_default=True,
    help="Sample rate of raw PCM in Hz.",
)
@click.option(
    "--channels", type=click.IntRange(1, 64), default=1, show_default=True, help="Channels of raw PCM, interleaved."
)
@click.option(
    "--pcm-format",
    type=click.Choice(["s16le", "f32le"]),
    default="s16le",
    show_default=True,
    help="Sample format of raw PCM: 16-bit integers or 32-bit floats.",
)
@click.option("--microphone", help="Name or number of the microphone.  [default: the system's]")
@json_option("Print JSON objects, one on a line: the tags of each window, and events.")
@click.option("--events", "events_only", is_flag=True, help="Print events only, not every window.")
@click.option("--on", type=Number(0, 1), default=0.4, show_default=True, help="Probability that an event must reach.")
@click.option("--off", type=Number(0, 1), default=0.2, show_default=True, help="Probability below which it ends.")
@click.option(
    "--class", "classes", multiple=True, metavar="NAME=ON/OFF", help="--on and --off of a single class; repeat."
)
@click.option(
    "--min-duration",
    "min_duration_s",
    type=Number(min=0),
    default=0.0,
    show_default=True,
    help="Seconds; shorter events are not reported.",
)
@click.option(
    "--smooth",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Windows to average before events are found.",
)
def listen(
    source: str | None,
    window_s: float | None,
    hop_s: float | None,
    top: int,
    threshold: float,
    as_json: bool,
    events_only: bool,
    on: float,
    off: float,
    classes: tuple[str, ...],
    min_duration_s: float,
    smooth: int,
    bundle: Path | None,
    kind: str | None,
    format: str | None,
    runtime: str | None,
    threads: int,
    **source_options: Any,
) -> None:
    """Tag the microphone, a file, or raw PCM on stdin (SOURCE `-`) live, and find events.

    The default is windows of 2 s, one every 0.5 s. If the machine is too slow for a live source, windows are skipped,
    and their number is reported. Of a file, no window is skipped, nor of a pipe that is faster than real time.
    Ctrl-C reports the events that have not ended yet, and stops.

    \b
    arecord -t raw -f S16_LE -r 48000 -c 2 | ced-edge listen - --rate 48000 --channels 2
    """
    from ced_edge.runtime.events import EventRule, Events
    from ced_edge.runtime.listen import ListenStats
    from ced_edge.runtime.listen import listen as run
    from ced_edge.runtime.show import show_in
    from ced_edge.runtime.tagger import StreamingTagger, Tagger

    _check_source_flags(source)
    rule = EventRule(on, off, min_duration_s, smooth, dict(map(_thresholds, classes)))
    tagger = Tagger(find_bundle(bundle), kind, format, threads=threads, runtime=runtime)
    window_s = min(2.0, tagger.bundle.window_s) if window_s is None else window_s
    stream = StreamingTagger(tagger, window_s, min(0.5, window_s) if hop_s is None else hop_s)
    events = Events(rule, tagger.bundle.spec.n_classes)
    show = show_in(as_json, sys.stdout.isatty(), top, threshold, events_only)
    stats = ListenStats()
    with _until_signal() as stopped, contextlib.closing(_source(source, **source_options)) as opened:
        try:
            run(opened, stream, events, show, stopped, stats)
        except CedEdgeError:
            if stats.windows:
                _summarise(stats, opened)
            raise
    _summarise(stats, opened)


def _summarise(stats: ListenStats, source: Any) -> None:
    text = f"tagged {stats.seconds:.1f} s in {stats.windows} windows"
    if stats.skipped:
        text += f"; skipped {stats.skipped}: this machine is too slow for this hop"
    if lost := getattr(source, "overflows", 0):
        text += f"; samples were lost {lost} times"
    log.info("%s", text)


def _check_source_flags(source: str | None) -> None:
    """Raise InputError for flags of another kind of source: without effect, they would hide a mistake."""
    for flags, kind, used in (
        (("rate_hz", "channels", "pcm_format"), "raw PCM on stdin (SOURCE -)", source == "-"),
        (("microphone",), "the microphone (no SOURCE)", source is None),
    ):
        if not used and (given := given_flags(flags)):
            raise InputError(f"{', '.join(given)} has an effect on {kind} only: leave it out")


def _source(source: str | None, rate_hz: int, channels: int, pcm_format: str, microphone: str | None) -> Any:
    from ced_edge.audio.sources import FileSource, PcmSource

    if source is None:
        from ced_edge.audio.microphone import Microphone

        return Microphone(microphone)
    if source == "-":
        if sys.stdin is None:
            raise InputError("stdin is closed: pipe raw PCM into it, or name a file")
        return PcmSource(sys.stdin.buffer, rate_hz, channels, pcm_format)
    return FileSource(Path(source))


def _thresholds(text: str) -> tuple[int, tuple[float, float]]:
    """`Dog=0.6/0.3` -> the class's index and its two thresholds. Raises InputError."""
    from ced_edge.labels import index_of

    name, _, values = text.rpartition("=")
    try:
        on, off = map(float, values.split("/"))
    except ValueError as e:
        raise InputError(f"--class {text}: give NAME=ON/OFF, e.g. Dog=0.6/0.3") from e
    return index_of(name), (on, off)


@contextlib.contextmanager
def _until_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that is true after Ctrl-C or SIGTERM. A second one stops the program at once."""
    stopped = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
