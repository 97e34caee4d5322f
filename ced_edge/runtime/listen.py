"""Listening: windows and events as the audio comes, without falling behind."""

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
"""A live source that is further behind skips windows."""
_WAIT_S = 0.2


@dataclass
class ListenStats:
    """What became of a stream."""

    seconds: float = 0.0
    windows: int = 0
    skipped: int = 0
    """Windows that went by unheard, because the machine was too slow."""


class Show(Protocol):
    """Where the answers go."""

    def tags(self, tags: Tags, active: list[int], heard: ListenStats) -> None:
        """The next window, and the classes whose event is going on."""
        ...

    def event(self, event: Event) -> None:
        """An event that has ended."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know."""
        ...


def listen(
    source: Source,
    stream: StreamingTagger,
    events: Events,
    show: Show,
    stopped: Callable[[], bool] = lambda: False,
    heard: ListenStats | None = None,
) -> ListenStats:
    """Hear a source to its end, its tail too, and then end the events that were going on.

    Once `stopped`, only the events are ended, however much waits to be heard. Where the source fails or gives samples
    that are no use, what came before is heard to the end, and then the CedEdgeError is raised; `heard`, if given, is
    filled in all the same.
    """
    heard, most = heard or ListenStats(), max(1, round(MAX_LAG_S * stream.tagger.rate_hz / stream.hop))
    told, error = 0, None

    def tag_next() -> None:
        tags = stream.pop()
        heard.windows += 1
        ended = events.push(tags)
        heard.seconds = tags.end_s
        show.tags(tags, events.active, heard)
        for event in ended:
            show.event(event)

    while not stopped():
        if source.live or not stream.ready():
            try:
                pieces = source.read(0.0 if stream.ready() else _WAIT_S)
                for samples, rate_hz in pieces or ():
                    _accept(stream, samples, rate_hz)
            except CedEdgeError as e:
                error = e
                break
            if pieces is None:
                break
        while source.live and stream.ready() > most:
            stream.skip()
            heard.skipped += 1
        if heard.skipped > 2 * told:
            told = heard.skipped
            show.note(f"too slow for a hop of {stream.hop_s:g} s: {told} windows skipped so far (try a longer --hop)")
        if stream.ready():
            tag_next()
    stream.finish()
    while stream.ready() and not stopped():
        tag_next()
    for event in events.finish():
        show.event(event)
    if error is not None:
        raise error
    return heard


def _accept(stream: StreamingTagger, samples: Float32, rate_hz: int) -> None:
    """Of a piece with a sample that is no number, what comes before it; else an error would depend on the pieces."""
    try:
        stream.accept(samples, rate_hz)
    except CedEdgeError:
        bad = np.nonzero(~np.isfinite(samples))[0]
        if len(bad):
            stream.accept(samples[: bad[0]], rate_hz)
        raise
