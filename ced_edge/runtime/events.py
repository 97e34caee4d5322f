"""From the answers of overlapping windows to events with start and end: smoothing, hysteresis, least duration.

A window speaks for the time nearest to its centre, so between two windows the border lies midway between their
centres; the first speaks from its start and the last to its end. An event of a class is a run of windows of at least
`off`, one of which reaches `on` (two thresholds, as H. Dinkel et al., arXiv 1904.03841).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ced_edge.arrays import Bools, Float64
from ced_edge.errors import InputError
from ced_edge.runtime.tagger import Tags


@dataclass(frozen=True)
class EventRule:
    """What makes an event."""

    on: float = 0.4
    """A window of at least this probability makes an event."""
    off: float = 0.2
    """Windows of at least this probability before and after it belong to the event."""
    min_duration_s: float = 0.0
    """Shorter events are left out."""
    smooth: int = 1
    """Windows whose mean is taken first; it stands for the mean of their centres."""
    classes: Mapping[int, tuple[float, float]] = dataclasses.field(default_factory=dict)
    """(on, off) of single classes, by index."""

    def __post_init__(self) -> None:
        problems = [
            f"thresholds on {on:g} and off {off:g}: 0 < off <= on <= 1"
            for on, off in [(self.on, self.off), *self.classes.values()]
            if not 0 < off <= on <= 1
        ]
        if not 0 <= self.min_duration_s < float("inf"):
            problems.append(f"a least duration of {self.min_duration_s:g} s: give 0 or more")
        if self.smooth < 1:
            problems.append(f"smoothing over {self.smooth} windows: give 1 or more")
        if problems:
            raise InputError("events: " + "; ".join(problems))


@dataclass(frozen=True)
class Event:
    """A sound that was there from `start_s` to `end_s`."""

    index: int
    """Of its class."""
    start_s: float
    end_s: float
    peak: float
    """Highest probability, after smoothing."""


class Events:
    """The events of a stream of Tags. Its state does not grow."""

    def __init__(self, rule: EventRule, n_classes: int) -> None:
        """Raises InputError when the rule names a class that is not there."""
        if outside := [i for i in rule.classes if not 0 <= i < n_classes]:
            raise InputError(f"events: class {outside[0]} is out of range: the indices are 0 to {n_classes - 1}")
        self.rule = rule
        self._on, self._off = np.full(n_classes, rule.on), np.full(n_classes, rule.off)
        for i, (on, off) in rule.classes.items():
            self._on[i], self._off[i] = on, off
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        C = len(self._on)
        self._recent: collections.deque[Tags] = collections.deque(maxlen=self.rule.smooth)
        self._centre_s = 0.0
        self._above, self._reached = np.zeros(C, bool), np.zeros(C, bool)  # in a run above off; on was in it
        self._start_s, self._peak = np.zeros(C), np.zeros(C)

    def push(self, tags: Tags) -> list[Event]:
        """Take the next window; the events that ended with it, by start."""
        # Windows were skipped, so nobody knows whether a sound continued: all events end before the gap.
        ended = self.finish() if self._recent and tags.start_s > self._recent[-1].end_s else []
        first = not self._recent
        self._recent.append(tags)
        probs = np.mean([t.probs for t in self._recent], axis=0, dtype=np.float64)  # (C,)
        centre_s = float(np.mean([(t.start_s + t.end_s) / 2 for t in self._recent]))
        border_s = tags.start_s if first else (self._centre_s + centre_s) / 2
        self._centre_s = centre_s
        above = probs >= self._off
        ended += self._close(self._above & ~above, border_s)
        self._start_s[above & ~self._above] = border_s
        self._above = above
        self._reached |= probs >= self._on
        self._peak = np.where(above, np.maximum(self._peak, probs), 0.0)
        return ended

    def finish(self) -> list[Event]:
        """The stream is over: the events that lasted until its end. Then a new one may begin."""
        ended = self._close(self._above, self._recent[-1].end_s) if self._recent else []
        self.reset()
        return ended

    @property
    def active(self) -> list[int]:
        """Classes whose event is going on and has lasted long enough, the likeliest first."""
        lasting = self._reached & (self._centre_s - self._start_s >= self.rule.min_duration_s)
        indices = np.flatnonzero(lasting)
        return [int(i) for i in indices[np.argsort(-self._peak[indices], kind="stable")]]

    def _close(self, over: Bools, end_s: float) -> list[Event]:
        """End the runs of these classes (C,); the ones that are events."""
        lasted = end_s - self._start_s >= self.rule.min_duration_s - 1e-9  # times are sums of hops
        ended = [
            Event(int(i), float(self._start_s[i]), end_s, float(self._peak[i]))
            for i in np.flatnonzero(over & self._reached & lasted)
        ]
        self._reached[over] = False
        return sorted(ended, key=lambda e: e.start_s)


def find_events(tags: Iterable[Tags], rule: EventRule | None = None) -> list[Event]:
    """All events in the windows of a stream, in the order in which they end.

    `rule` is EventRule() by default. Raises InputError when the rule names a class that the tags do not have.
    """
    windows = iter(tags)
    first = next(windows, None)
    if first is None:
        return []
    events = Events(rule or EventRule(), len(first.probs))
    found = events.push(first)
    for window in windows:
        found += events.push(window)
    return found + events.finish()


def borders_s(tags: Iterable[Tags]) -> Float64:
    """Where each window's time begins, and where the last one's ends: (windows + 1,)."""
    spans = np.array([(t.start_s, t.end_s) for t in tags])
    centres = spans.mean(axis=1)
    return np.concatenate([spans[:1, 0], (centres[1:] + centres[:-1]) / 2, spans[-1:, 1]])
