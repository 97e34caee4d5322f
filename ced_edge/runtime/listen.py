"""Listen: windows and events as the audio arrives. A machine that is too slow skips windows, and keeps up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ced_edge.arrays import Float32
from ced_edge.audio.mix import first_bad
from ced_edge.audio.sources import Gap, Hint, Item, Source
from ced_edge.errors import CedEdgeError
from ced_edge.runtime.clock import clock
from ced_edge.runtime.events import Event, Events
from ced_edge.runtime.level_watch import LevelWatch
from ced_edge.runtime.tagger import StreamingTagger, Tags

MAX_LAG_S = 0.5
"""Windows of a live source are skipped when more audio than this waits, in seconds."""
_WAIT_S = 0.2
"""Longest wait for audio, in seconds, before `stopped` is checked again."""


@dataclass
class ListenStats:
    """How much of a stream was predicted."""

    seconds: float = 0.0
    """From the start of the stream to the end of the last window."""
    windows: int = 0
    skipped: int = 0
    """Windows that were not predicted, because the machine was too slow."""
    gaps: int = 0
    """Outages of a live source."""
    missing_s: float = 0.0
    """Length of the gaps together."""
    started_unix_s: float | None = None
    """The time of day at second 0, in seconds since 1970. None if the source is not live."""


class Show(Protocol):
    """Where the results go: a screen, lines of text, or JSON."""

    def tags(self, tags: Tags, active: list[int], stats: ListenStats) -> None:
        """Show a window, and the classes that have an event now."""
        ...

    def event(self, event: Event, stats: ListenStats) -> None:
        """Show an event that has ended."""
        ...

    def gap(self, start_s: float, end_s: float, stats: ListenStats) -> None:
        """Show that a live source has lost its audio between these times."""
        ...

    def note(self, text: str) -> None:
        """Show a message for the user."""
        ...


def listen(
    source: Source,
    stream: StreamingTagger,
    events: Events,
    show: Show,
    stopped: Callable[[], bool] = lambda: False,
    stats: ListenStats | None = None,
    quiet_after_s: float = 10.0,
) -> ListenStats:
    """Predict a source to its end, the last incomplete window too, and then end all open events.

    When `stopped` returns True, the open events are ended at once, and the audio that waits is dropped. When the source
    fails, or gives unusable samples, everything before is predicted first, and then the CedEdgeError is raised.
    `stats`, if given, is filled in that case too. After `quiet_after_s` seconds without audio a note is shown.
    """
    return _Listening(source, stream, events, show, stopped, stats or ListenStats(), quiet_after_s).run()


class _Listening:
    """One call of `listen`."""

    def __init__(
        self,
        source: Source,
        stream: StreamingTagger,
        events: Events,
        show: Show,
        stopped: Callable[[], bool],
        stats: ListenStats,
        quiet_after_s: float,
    ) -> None:
        self._source, self._stream, self._events, self._show = source, stream, events, show
        self._stopped, self._stats, self._quiet_after_s = stopped, stats, quiet_after_s
        # At least one window must be able to wait, or nothing would ever be predicted.
        self._most_waiting = max(1, round(MAX_LAG_S * stream.tagger.rate_hz / stream.hop))
        self._watch = LevelWatch()
        self._reported = 0  # skipped windows
        self._frames, self._rate_hz = 0, 1  # audio so far, and its rate
        self._last_audio, self._quiet = time.monotonic(), False

    def run(self) -> ListenStats:
        error = None
        while not self._stopped():
            # A file waits for us, so a window that is ready comes first. A live source does not wait: its audio is
            # taken in at once.
            if self._source.live or not self._stream.ready():
                try:
                    items = self._source.read(0.0 if self._stream.ready() else _WAIT_S)
                    self._take(items or [])
                except CedEdgeError as e:
                    error = e  # raised at the end: the audio before it is still to be predicted
                    break
                if items is None:
                    break
            self._keep_up()
            if self._stream.ready():
                self._tag_next()
        self._end_of_segment()
        if error is not None:
            raise error
        return self._stats

    def _take(self, items: Sequence[Item]) -> None:
        now = time.monotonic()
        if not items:
            if not self._quiet and now - self._last_audio >= self._quiet_after_s:
                self._quiet = True
                self._show.note(f"no audio for {now - self._last_audio:.0f} s: is the source still connected?")
            return
        if self._quiet and not any(isinstance(item, Gap) for item in items):
            self._show.note(f"the audio continues, after {now - self._last_audio:.0f} s without")
        self._last_audio, self._quiet = now, False
        for item in items:
            if isinstance(item, Hint):
                self._show.note(item.text)
            elif isinstance(item, Gap):
                self._skip_gap(item.seconds)
            else:
                _accept(self._stream, *item)
                self._frames, self._rate_hz = self._frames + len(item[0]), item[1]

    def _skip_gap(self, seconds: float) -> None:
        """End the stream before the gap, and begin another one after it, at the later time."""
        self._end_of_segment()
        stats, rate_hz = self._stats, self._stream.tagger.rate_hz
        # Computed from the beginning of the stream, so that rounding does not add up over many gaps.
        start_s = self._frames / self._rate_hz + stats.missing_s
        stats.gaps, stats.missing_s = stats.gaps + 1, stats.missing_s + seconds
        self._stream.reset(round((start_s + seconds) * rate_hz))
        self._show.gap(start_s, start_s + seconds, stats)
        self._show.note(f"no audio from {clock(start_s)} to {clock(start_s + seconds)}: {seconds:.1f} s were lost")

    def _keep_up(self) -> None:
        """Skip windows of a live source, if too many wait."""
        while self._source.live and self._stream.ready() > self._most_waiting:
            self._stream.skip()
            self._stats.skipped += 1
        if self._stats.skipped > 2 * self._reported:  # a note at 1, 3, 7 ... skipped windows, and not at each of them
            self._reported = self._stats.skipped
            self._show.note(
                f"too slow for a hop of {self._stream.hop_s:g} s: {self._reported} windows skipped so far"
                " (try a longer --hop)"
            )

    def _tag_next(self) -> None:
        tags = self._stream.pop()
        stats = self._stats
        stats.windows += 1
        stats.started_unix_s = self._source.started_unix_s
        ended = self._events.push(tags)
        stats.seconds = tags.end_s
        self._show.tags(tags, self._events.active, stats)
        for text in self._watch.push(tags):
            self._show.note(text)
        for event in ended:
            self._show.event(event, stats)

    def _end_of_segment(self) -> None:
        """Predict the rest of the audio, and end all events. No window is skipped: nothing can fall behind any more."""
        self._stream.finish()
        while self._stream.ready() and not self._stopped():
            self._tag_next()
        for event in self._events.finish():
            self._show.event(event, self._stats)


def _accept(stream: StreamingTagger, samples: Float32, rate_hz: int) -> None:
    """Take a piece. If it holds a sample that is refused, take the samples before it, and then raise the error.

    So the windows before the error do not depend on how the audio was cut into pieces.
    """
    try:
        stream.accept(samples, rate_hz)
    except CedEdgeError:
        if bad := first_bad(samples):
            stream.accept(samples[:bad], rate_hz)
        raise
