"""The subcommands that run a bundle: tag files, listen, and show what is in it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.machine import cores
from ced_edge.options import FILE, FOLDER, newest_bundle
from ced_edge.runtime.bundle import FORMATS, KINDS, Bundle, read_bundle
from ced_edge.spec import N_CLASSES

if TYPE_CHECKING:
    from ced_edge.runtime.listen import ListenStats
    from ced_edge.runtime.tagger import Tagger

F = TypeVar("F", bound=Callable[..., Any])
_SHOW_PROGRESS_S = 1.0


def _a_number(context: click.Context, option: click.Parameter, value: float) -> float:
    """A range lets NaN through."""
    if math.isnan(value):
        raise click.BadParameter("nan is no number.", context, option)
    return value


def model_options(command: F) -> F:
    """--bundle, --kind, --runtime, --window, --hop, --top and --threshold."""
    for option in reversed(
        [
            click.option("--bundle", type=FOLDER, help="Folder with a model.  [default: the newest runs/*/bundle]"),
            click.option("--kind", type=click.Choice(KINDS), help="Arithmetic.  [default: the first there is]"),
            click.option("--runtime", type=click.Choice(FORMATS), help="ONNX Runtime or TFLite.  [default: the first]"),
            click.option("--window", "window_s", type=float, help="Seconds heard at once, up to the bundle's."),
            click.option("--hop", "hop_s", type=float, help="Seconds from one window to the next."),
            click.option(
                "--top", type=click.IntRange(1, N_CLASSES), default=5, show_default=True, help="Tags to show."
            ),
            click.option(
                "--threshold",
                type=click.FloatRange(0, 1),
                callback=_a_number,
                default=0.0,
                help="Least probability to show.",
            ),
        ]
    ):
        command = option(command)
    return command


@click.command()
@click.argument("bundle", required=False, type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="The manifest as JSON.")
def info(bundle: Path | None, as_json: bool) -> None:
    """Show what a bundle (the newest under runs/, if none is given) holds, after checking every file of it."""
    read = read_bundle(bundle or newest_bundle())
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
        *((f"reference {name}", f"{value:g}") for name, value in metrics.items() if isinstance(value, int | float)),
        *((f"made with {name}", version) for name, version in b.versions.items()),
    ]
    width = max(len(f.name) for f in b.files)
    files = [f"{f.name:{width}}  {f.kind:11}  {f.bytes / 1e6:6.2f} MB  {f.quantisation}" for f in b.files]
    return "\n".join([*(f"{name:22} {value}" for name, value in rows), "", *files])


def load_tagger(bundle: Path | None, kind: str | None, runtime: str | None, threads: int = 1) -> Tagger:
    """The tagger that `model_options` ask for."""
    from ced_edge.runtime.tagger import Tagger

    return Tagger(bundle or newest_bundle(), kind=kind, format=runtime, threads=threads)


@click.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@model_options
@click.option("--jobs", type=click.IntRange(1), help="Files at a time.  [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="A JSON object per file and line.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV: a row per window and tag.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="PNG of one file: spectrogram above a timeline of its top tags.",
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
    **model: Any,
) -> None:
    """Tag audio files of any format, rate and length; folders are walked.

    A long file is heard in windows of --window seconds every --hop seconds (by default the bundle's window, one after
    the other), and tagged as a whole by their mean. A file or folder that cannot be used is told of, the rest goes on,
    and the exit code is 1.
    """
    from ced_edge.figures import require_matplotlib
    from ced_edge.runtime.plot import plot_tags
    from ced_edge.runtime.tag_files import tag_files, walk

    if as_json and as_csv:
        raise InputError("--json and --csv: choose one")
    unread: list[OSError] = []
    paths = walk(files, unread.append)
    for error in unread:
        click.echo(f"ced-edge: cannot read the folder {error.filename}: {error.strerror}", err=True)
    if plot is not None:
        require_matplotlib("--plot")
        if len(paths) != 1:
            raise InputError(f"--plot draws one file, not {len(paths)}")
        if plot.suffix.lower() != ".png":
            raise InputError(f"--plot {plot} writes a PNG: give it a name that ends in .png")
    tagger = load_tagger(**model)
    bad = 0
    write = _csv_writer(top, threshold) if as_csv else _writer(as_json, top, threshold)
    with _progress() as progress:
        for done in tag_files(tagger, paths, window_s, hop_s, jobs or cores(), progress):
            progress(None)
            if done.error is not None:
                bad += 1
                click.echo(f"ced-edge: {done.error}", err=True)
                continue
            write(done)
            if plot is not None:
                plot_tags(plot, done.path, done.tags, tagger.bundle.spec.frontend, top)
    if bad or unread:
        folders = f", and {len(unread)} folder{'s' * (len(unread) > 1)} not read" if unread else ""
        raise CedEdgeError(f"{bad} of {len(paths)} files could not be tagged{folders}")


def _writer(as_json: bool, top: int, threshold: float) -> Callable[[Any], None]:
    """Writes what became of a file as text, or as a line of JSON."""
    from ced_edge.runtime.show import clock, tag_dicts, tag_text
    from ced_edge.runtime.tagger import Tags, mean_probs

    def write(done: Any) -> None:
        tags: tuple[Tags, ...] = done.tags
        whole = Tags(0.0, tags[-1].end_s, mean_probs(tags))
        if as_json:
            windows = [{"start_s": t.start_s, "end_s": t.end_s, "tags": tag_dicts(t, top, threshold)} for t in tags]
            fields = {"file": str(done.path), "seconds": whole.end_s, "tags": tag_dicts(whole, top, threshold)}
            click.echo(json.dumps({**fields, "windows": windows}))
            return
        click.echo(f"{done.path}  {clock(whole.end_s)}")
        click.echo(f"  {'all':21}  {tag_text(whole, top, threshold)}")
        for t in tags if len(tags) > 1 else ():
            click.echo(f"  {clock(t.start_s):>9} - {clock(t.end_s):>9}  {tag_text(t, top, threshold)}")

    return write


def _csv_writer(top: int, threshold: float) -> Callable[[Any], None]:
    """Writes what became of a file as rows of CSV."""

    def put(*row: object) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(row)
        click.echo(line.getvalue(), nl=False)

    def write(done: Any) -> None:
        for t in done.tags:
            for label, p in t.top(top, threshold):
                put(done.path, t.start_s, t.end_s, label.index, label.mid, label.name, round(p, 6))

    put("file", "start_s", "end_s", "index", "mid", "label", "prob")
    return write


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[float | None], None]]:
    """A bar on a terminal's stderr once it takes long: call it with the share done, or None to make room for a line."""
    begun, shown, bar = time.monotonic(), 0, None
    with contextlib.ExitStack() as at_exit:

        def update(share: float | None) -> None:
            nonlocal shown, bar
            if share is None:
                if bar is not None:
                    click.echo("\r\x1b[K", nl=False, err=True)
            elif sys.stderr.isatty() and time.monotonic() - begun > _SHOW_PROGRESS_S:
                if bar is None:
                    bar = at_exit.enter_context(click.progressbar(length=1_000, file=sys.stderr))
                bar.update(round(1_000 * share) - shown)
                shown = round(1_000 * share)

        yield update


@click.command()
@click.argument("source", required=False)
@model_options
@click.option("--rate", "rate_hz", type=click.IntRange(1), default=16_000, show_default=True, help="Of raw PCM, in Hz.")
@click.option("--channels", type=click.IntRange(1, 64), default=1, show_default=True, help="Of raw PCM.")
@click.option("--format", "pcm_format", type=click.Choice(["s16le", "f32le"]), default="s16le", help="Of raw PCM.")
@click.option("--device", help="Microphone, by name or number.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object per line: tags of each window, and events.")
@click.option("--events", "events_only", is_flag=True, help="Events with start and end alone, not every window.")
@click.option("--on", type=float, default=0.4, show_default=True, help="Probability that makes an event.")
@click.option("--off", type=float, default=0.2, show_default=True, help="Probability below which it ends.")
@click.option("--class", "classes", multiple=True, metavar="NAME=ON/OFF", help="Thresholds of one class; repeat.")
@click.option("--min-duration", "min_duration_s", type=float, default=0.0, help="Seconds; shorter events are left out.")
@click.option("--smooth", type=int, default=1, show_default=True, help="Windows whose mean is taken for events.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
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
    threads: int,
    **options: Any,
) -> None:
    """Tag the microphone, a file, or raw PCM on stdin (SOURCE `-`) live, and find events.

    By default windows of 2 s every 0.5 s. A machine that is too slow for a live source skips windows, and says how
    many. A file is heard whole, and so is a pipe that runs ahead of the clock. Ctrl-C ends the last events, and stops.

    \b
    arecord -t raw -f S16_LE -r 48000 -c 2 | ced-edge listen - --rate 48000 --channels 2
    """
    from ced_edge.runtime.events import EventRule, Events
    from ced_edge.runtime.listen import ListenStats
    from ced_edge.runtime.listen import listen as run
    from ced_edge.runtime.show import show_in
    from ced_edge.runtime.tagger import StreamingTagger

    rule = EventRule(on, off, min_duration_s, smooth, dict(map(_thresholds, classes)))
    tagger = load_tagger(options.pop("bundle"), options.pop("kind"), options.pop("runtime"), threads)
    window_s = min(2.0, tagger.bundle.window_s) if window_s is None else window_s
    stream = StreamingTagger(tagger, window_s, min(0.5, window_s) if hop_s is None else hop_s)
    events = Events(rule, tagger.bundle.spec.n_classes)
    show = show_in(as_json, sys.stdout.isatty(), top, threshold, events_only)
    heard = ListenStats()
    with _until_signal() as stopped, contextlib.closing(_source(source, **options)) as opened:
        try:
            run(opened, stream, events, show, stopped, heard)
        except CedEdgeError:
            if heard.windows:
                _summarise(heard, opened)
            raise
    _summarise(heard, opened)


def _summarise(heard: ListenStats, source: Any) -> None:
    told = f"heard {heard.seconds:.1f} s in {heard.windows} windows"
    if heard.skipped:
        told += f"; skipped {heard.skipped}: this machine is too slow for this hop"
    if lost := getattr(source, "overflows", 0):
        told += f"; samples were lost {lost} times"
    click.echo(f"ced-edge: {told}", err=True)


def _source(source: str | None, rate_hz: int, channels: int, pcm_format: str, device: str | None) -> Any:
    from ced_edge.audio.sources import FileSource, PcmSource

    if source is None:
        from ced_edge.audio.microphone import Microphone

        return Microphone(device)
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
    """Whether Ctrl-C (or a SIGTERM) has come. The second one does not wait."""
    told = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
