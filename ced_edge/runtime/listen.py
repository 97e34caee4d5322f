"""Listen: windows and events as the audio arrives. A machine that is too slow skips windows, and keeps up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ced_edge.arrays import Float32
from ced_edge.audio.sources import Source
from ced_edge.errors import CedEdgeError
from ced_edge.runtime.events import Event, Events
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


class Show(Protocol):
    """Where the results go: a screen, lines of text, or JSON."""

    def tags(self, tags: Tags, active: list[int], stats: ListenStats) -> None:
        """Show a window, and the classes that have an event now."""
        ...

    def event(self, event: Event) -> None:
        """Show an event that has ended."""
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
) -> ListenStats:
    """Predict a source to its end, the last incomplete window too, and then end all open events.

    When `stopped` returns True, the open events are ended at once, and the audio that waits is dropped. When the source
    fails, or gives unusable samples, everything before is predicted first, and then the CedEdgeError is raised.
    `stats`, if given, is filled in that case too.
    """
    # At least one window must be able to wait, or nothing would ever be predicted.
    stats, most = stats or ListenStats(), max(1, round(MAX_LAG_S * stream.tagger.rate_hz / stream.hop))
    reported, error = 0, None

    def tag_next() -> None:
        tags = stream.pop()
        stats.windows += 1
        ended = events.push(tags)
        stats.seconds = tags.end_s
        show.tags(tags, events.active, stats)
        for event in ended:
            show.event(event)

    while not stopped():
        # A file waits for us, so a window that is ready comes first. A live source does not wait: its audio is taken
        # in at once.
        if source.live or not stream.ready():
            try:
                pieces = source.read(0.0 if stream.ready() else _WAIT_S)
                for samples, rate_hz in pieces or ():
                    _accept(stream, samples, rate_hz)
            except CedEdgeError as e:
                error = e  # raised at the end: the audio before it is still to be predicted
                break
            if pieces is None:
                break
        while source.live and stream.ready() > most:
            stream.skip()
            stats.skipped += 1
        if stats.skipped > 2 * reported:  # a note at 1, 3, 7 ... skipped windows, and not at each of them
            reported = stats.skipped
            show.note(
                f"too slow for a hop of {stream.hop_s:g} s: {reported} windows skipped so far (try a longer --hop)"
            )
        if stream.ready():
            tag_next()
    # No more audio arrives, so nothing can fall behind any more, and no window is skipped.
    stream.finish()
    while stream.ready() and not stopped():
        tag_next()
    for event in events.finish():
        show.event(event)
    if error is not None:
        raise error
    return stats


def _accept(stream: StreamingTagger, samples: Float32, rate_hz: int) -> None:
    """Take a piece. If it holds a sample that is not finite, take the samples before it, and then raise the error.

    So the windows before the error do not depend on how the audio was cut into pieces.
    """
    try:
        stream.accept(samples, rate_hz)
    except CedEdgeError:
        bad = np.nonzero(~np.isfinite(samples))[0]
        if len(bad):
            stream.accept(samples[: bad[0]], rate_hz)
        raise
