"""Listening: windows and events as the audio comes, without falling behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ced_edge.events import Event, Events
from ced_edge.sources import Source
from ced_edge.tagger import StreamingTagger, Tags

MAX_LAG_S = 0.5
"""A live source that is further behind skips windows."""
_WAIT_S = 0.2


@dataclass
class Heard:
    """What became of a stream."""

    seconds: float = 0.0
    windows: int = 0
    skipped: int = 0
    """Windows that went by unheard, because the machine was too slow."""


class Show(Protocol):
    """Where the answers go."""

    def tags(self, tags: Tags, active: list[int], heard: Heard) -> None:
        """The next window, and the classes whose event is going on."""
        ...

    def event(self, event: Event) -> None:
        """An event that has ended."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know."""
        ...


def listen(
    source: Source, stream: StreamingTagger, events: Events, show: Show, stopped: Callable[[], bool] = lambda: False
) -> Heard:
    """Hear a source to its end, or until `stopped`; then its tail, and the events that were going on."""
    heard, most = Heard(), max(1, round(MAX_LAG_S * stream.tagger.rate_hz / stream.hop))
    told = 0

    def hear_one() -> None:
        tags = stream.pop()
        heard.windows += 1
        ended = events.push(tags)
        heard.seconds = tags.end_s
        show.tags(tags, events.active, heard)
        for event in ended:
            show.event(event)

    while not stopped():
        if source.live or not stream.ready():
            pieces = source.read(0.0 if stream.ready() else _WAIT_S)
            if pieces is None:
                break
            for samples, rate_hz in pieces:
                stream.accept(samples, rate_hz)
        while source.live and stream.ready() > most:
            stream.skip()
            heard.skipped += 1
        if heard.skipped > 2 * told:
            told = heard.skipped
            show.note(f"too slow for a hop of {stream.hop_s:g} s: {told} windows skipped so far (try a longer --hop)")
        if stream.ready():
            hear_one()
    stream.finish()
    while stream.ready():
        hear_one()
    for event in events.finish():
        show.event(event)
    return heard
