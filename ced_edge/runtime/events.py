"""Events with a start and an end, from the predictions for overlapping windows.

A window of 2 s every 0.5 s says little about where in its 2 s a sound is. So each window stands for the time that is
closer to its centre than to any other centre: the border between two windows is midway between their centres. The
first window also stands for the time from its start, and the last one for the time to its end.

An event of a class is a run of windows with a probability of at least `off`, in which at least one window reaches `on`.
With a single threshold, a probability that moves around it would make many short events (hysteresis, as in H. Dinkel et
al., arXiv 1904.03841).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ced_edge.arrays import Bools, Float64
from ced_edge.errors import InputError
from ced_edge.labels import Label, index_of, labels
from ced_edge.runtime.bundle import Bundle
from ced_edge.runtime.tagger import Tags


@dataclass(frozen=True)
class EventRule:
    """The thresholds that turn probabilities into events. Raises InputError on impossible ones."""

    on: float = 0.4
    """Probability that at least one window of an event must reach."""
    off: float = 0.2
    """Probability that every window of an event must reach. At most `on`."""
    min_duration_s: float = 0.0
    """Shorter events are left out."""
    smooth: int = 1
    """Number of windows. Each window and those before it, so many in all, are averaged before events are found."""
    classes: Mapping[int, tuple[float, float]] = dataclasses.field(default_factory=dict)
    """Class index -> its own (on, off)."""

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


def own_thresholds(bundle: Bundle) -> dict[int, tuple[float, float]]:
    """Class index -> (on, off) of the classes that a bundle has thresholds for. `off` is half of `on`."""
    return {index_of(name): (on, on / 2) for name, on in bundle.thresholds.items()}


@dataclass(frozen=True)
class Event:
    """A sound with a start and an end."""

    index: int
    """Index of its class, see `label`."""
    start_s: float
    """Seconds from the start of the stream."""
    end_s: float
    peak: float
    """Highest probability of its windows, after smoothing."""

    @property
    def label(self) -> Label:
        """Its class, with index, mid and name."""
        return labels()[self.index]


class Events:
    """Finds the events of a stream: `push` each window, and at the end `finish`. Its memory does not grow."""

    def __init__(self, rule: EventRule, n_classes: int) -> None:
        """Raises InputError when the rule names a class beyond `n_classes`."""
        if outside := [i for i in rule.classes if not 0 <= i < n_classes]:
            raise InputError(f"events: class {outside[0]} is out of range: the indices are 0 to {n_classes - 1}")
        self.rule = rule
        self._on, self._off = np.full(n_classes, rule.on), np.full(n_classes, rule.off)
        for i, (on, off) in rule.classes.items():
            self._on[i], self._off[i] = on, off
        self.reset()

    def reset(self) -> None:
        """Start a new stream, and forget the events that have not ended."""
        C = len(self._on)
        self._recent: collections.deque[Tags] = collections.deque(maxlen=self.rule.smooth)
        self._centre_s = 0.0
        # The current run of each class: whether it has one (at least `off`), whether the run has reached `on`, where it
        # started and its highest probability.
        self._above, self._reached = np.zeros(C, bool), np.zeros(C, bool)
        self._start_s, self._peak = np.zeros(C), np.zeros(C)

    def push(self, tags: Tags) -> list[Event]:
        """Add the next window, and return the events that end before it, sorted by start."""
        # Windows were skipped, so it is not known whether a sound continued: all events end before the gap.
        ended = self.finish() if self._recent and tags.start_s > self._recent[-1].end_s else []
        first = not self._recent
        self._recent.append(tags)
        probs = np.mean([t.probs for t in self._recent], axis=0, dtype=np.float64)  # (C,)
        centre_s = float(np.mean([(t.start_s + t.end_s) / 2 for t in self._recent]))
        # A smoothed probability belongs to the mean of the centres that it was averaged over.
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
        """End the stream, and return the events that last until its end. The next `push` starts a new stream."""
        ended = self._close(self._above, self._recent[-1].end_s) if self._recent else []
        self.reset()
        return ended

    @property
    def active(self) -> list[int]:
        """Classes that have an event now which has lasted `min_duration_s`, the one with the highest peak first."""
        lasting = self._reached & (self._centre_s - self._start_s >= self.rule.min_duration_s)
        indices = np.flatnonzero(lasting)
        return [int(i) for i in indices[np.argsort(-self._peak[indices], kind="stable")]]

    def _close(self, over: Bools, end_s: float) -> list[Event]:
        """End the runs of these classes (C,), and return those that are events."""
        # Times are sums of hops: their rounding must not make an event too short.
        lasted = end_s - self._start_s >= self.rule.min_duration_s - 1e-9
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
    """The borders between windows in seconds, with the start of the first and the end of the last: (windows + 1,)."""
    spans = np.array([(t.start_s, t.end_s) for t in tags])
    centres = spans.mean(axis=1)
    return np.concatenate([spans[:1, 0], (centres[1:] + centres[:-1]) / 2, spans[-1:, 1]])
