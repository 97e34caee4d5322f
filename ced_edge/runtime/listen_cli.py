"""The subcommand `listen`: tags and events of a stream."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ced_edge.audio.base import MAX_RATE_HZ, MIN_RATE_HZ
from ced_edge.audio.level import Gain
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import is_fifo
from ced_edge.options import SECONDS, Number, find_bundle, given_flags, json_option, tagging_options

if TYPE_CHECKING:
    from ced_edge.runtime.listen import ListenStats

log = logging.getLogger(__name__)

_FORMATS = ("s16le", "s24le", "s32le", "f32le")
_SOURCES = {"-": "through stdin: did the program that writes it fail?", None: "from the microphone"}


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
    type=click.Choice(_FORMATS),
    default="s16le",
    show_default=True,
    help="Samples of raw PCM: integers of 16, 24 (ALSA's S24_3LE) or 32 bits, or 32-bit floats.",
)
@click.option("--microphone", help="Name or number of the microphone.  [default: the system's]")
@click.option(
    "--quiet-after",
    "quiet_after_s",
    type=SECONDS,
    default=10.0,
    show_default=True,
    help="Seconds without audio from a pipe or a microphone after which a warning is shown.",
)
@json_option("Print JSON objects, one on a line: the tags of each window, events, and gaps.")
@click.option("--events", "events_only", is_flag=True, help="Print events only, not every window.")
@click.option(
    "--on",
    type=Number(0, 1),
    default=0.4,
    help="Probability that an event must reach.  [default: the bundle's for the class, else 0.4]",
)
@click.option(
    "--off",
    type=Number(0, 1),
    default=0.2,
    help="Probability below which it ends.  [default: half of the bundle's, else 0.2]",
)
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
    gain_db: Gain,
    top: int,
    threshold: float,
    quiet_after_s: float,
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
    """Tag the microphone, a file, or raw PCM through a pipe live, and find events. SOURCE `-` is stdin.

    The default is windows of 2 s, one every 0.5 s. If the machine is too slow for a live source, windows are skipped,
    and their number is reported. Of a file, no window is skipped, nor of a pipe that is faster than real time.
    Without --on and --off, a class has the thresholds of the bundle (`ced-edge info --json`), where it has any.
    Ctrl-C reports the events that have not ended yet, and stops. If a microphone or a live pipe delivers nothing for
    more than a second and the audio is lost, all events end before this gap, and the times after it follow the clock.

    Exit code: 0 after the end of the input, Ctrl-C or SIGTERM; 1 if no audio came, the source vanished or the output
    cannot be written; 2 if an option or the input cannot be used, so that a new start would not help.

    \b
    arecord -t raw -f S16_LE -r 48000 -c 2 | ced-edge listen - --rate 48000 --channels 2
    """
    from ced_edge.runtime.events import EventRule, Events, own_thresholds
    from ced_edge.runtime.listen import ListenStats
    from ced_edge.runtime.listen import listen as run
    from ced_edge.runtime.show import show_in
    from ced_edge.runtime.tagger import StreamingTagger, Tagger

    _check_source_flags(source)
    rule = EventRule(on, off, min_duration_s, smooth, dict(map(_thresholds, classes)))
    tagger = Tagger(find_bundle(bundle), kind, format, threads=threads, runtime=runtime)
    if not given_flags(["on", "off"]):
        rule = replace(rule, classes={**own_thresholds(tagger.bundle), **rule.classes})
    window_s = min(2.0, tagger.bundle.window_s) if window_s is None else window_s
    stream = StreamingTagger(tagger, window_s, min(0.5, window_s) if hop_s is None else hop_s, gain_db)
    events = Events(rule, tagger.bundle.spec.n_classes)
    show = show_in(as_json, top, threshold, events_only)
    stats = ListenStats()
    with _until_signal() as stopped, contextlib.closing(_source(source, **source_options)) as opened:
        try:
            run(opened, stream, events, show, stopped, stats, quiet_after_s)
        except CedEdgeError:
            if stats.windows:
                _summarise(stats, opened)
            raise
        if not stats.windows and not stopped():
            raise CedEdgeError(f"no audio came {_SOURCES.get(source, f'out of {source}')}")
    _summarise(stats, opened)


def _summarise(stats: ListenStats, source: Any) -> None:
    text = f"tagged {stats.seconds:.1f} s in {stats.windows} window{'s' * (stats.windows != 1)}"
    if stats.skipped:
        text += f"; skipped {stats.skipped}: this machine is too slow for this hop"
    if stats.gaps:
        text += f"; {stats.gaps} gap{'s' * (stats.gaps > 1)} of {stats.missing_s:.1f} s in all"
    if lost := getattr(source, "overflows", 0):
        text += f"; samples were lost {lost} times"
    log.info("%s", text)


def _check_source_flags(source: str | None) -> None:
    """Raise InputError for flags of another kind of source: without effect, they would hide a mistake."""
    for flags, kind, used in (
        (("rate_hz", "channels", "pcm_format"), "raw PCM on stdin (SOURCE -)", source is not None and _is_raw(source)),
        (("microphone",), "the microphone (no SOURCE)", source is None),
    ):
        if not used and (given := given_flags(flags)):
            raise InputError(f"{', '.join(given)} has an effect on {kind} only: leave it out")


def _source(source: str | None, rate_hz: int, channels: int, pcm_format: str, microphone: str | None) -> Any:
    from ced_edge.audio.sources import FileSource, NamedPipe, PcmSource

    if source is None:
        from ced_edge.audio.microphone import Microphone

        return Microphone(microphone)
    if source == "-":
        if sys.stdin is None:
            raise InputError("stdin is closed: pipe raw PCM into it, or name a file")
        return PcmSource(sys.stdin.buffer, rate_hz, channels, pcm_format)
    if _is_raw(source):
        return PcmSource(NamedPipe(Path(source)), rate_hz, channels, pcm_format)
    return FileSource(Path(source))


def _is_raw(source: str) -> bool:
    """Whether it is stdin, a named pipe, or a shell's `<(command)`: raw samples come through it."""
    return source == "-" or is_fifo(source)


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
