"""Reports when a stream begins to be digital zeros or clipped, and when that ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ced_edge.audio.level import Level
from ced_edge.runtime.clock import clock
from ced_edge.runtime.tagger import Tags

_QUIET_S = 10.0
"""After a fault has ended, it is reported again only if it is still there, or there again, after so many seconds. Else
a noise gate would cause a message with every word."""


@dataclass
class _Fault:
    """A fault of a stream, from its first window to its last one."""

    begins: str
    """The message; `{at}` is its time."""
    ends: str
    is_bad: Callable[[Level], bool]
    since_s: float | None = None
    until_s: float = 0.0
    reported: bool = False
    not_before_s: float = 0.0

    def push(self, tags: Tags) -> Iterator[str]:
        if tags.level is not None and self.is_bad(tags.level):
            if self.since_s is None:
                self.since_s = tags.start_s
            self.until_s = tags.end_s
            if not self.reported and tags.end_s >= self.not_before_s:
                self.reported = True
                yield self.begins.format(at=clock(self.since_s))
        elif self.since_s is not None:
            if self.reported:
                self.not_before_s = self.until_s + _QUIET_S
                yield self.ends.format(at=clock(self.until_s))
            self.since_s, self.reported = None, False


class LevelWatch:
    """Give it the windows of a stream in order."""

    def __init__(self) -> None:
        self._faults = (
            _Fault(
                "digital zeros since {at}: is the microphone muted, or not connected?",
                "no more digital zeros from {at} on",
                lambda level: level.zeros,
            ),
            _Fault(
                "clipped since {at}: lower the recording level (or --gain)",
                "no longer clipped from {at} on",
                lambda level: level.clipped,
            ),
        )

    def push(self, tags: Tags) -> list[str]:
        """The messages that this window causes."""
        return [text for fault in self._faults for text in fault.push(tags)]


def faults(tags: Sequence[Tags]) -> list[str]:
    """A message for each fault of a file: in how many of its windows, and where it is first."""
    known = [(t.start_s, t.level) for t in tags if t.level is not None]
    zeros = [start_s for start_s, level in known if level.zeros]
    clipped = [start_s for start_s, level in known if level.clipped]
    return [
        name if len(tags) == 1 else f"{name} in {len(bad)} of {len(tags)} windows, the first at {clock(bad[0])}"
        for name, bad in (("digital zeros", zeros), ("clipped", clipped))
        if bad
    ]
