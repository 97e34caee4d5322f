"""Tags and events for people and for machines: a screen that is drawn again in place, lines of text, lines of JSON."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from typing import Any

import click

from ced_edge.labels import labels
from ced_edge.runtime.events import Event
from ced_edge.runtime.listen import ListenStats, Show
from ced_edge.runtime.tagger import Tags

log = logging.getLogger(__name__)


def clock(seconds: float) -> str:
    """Seconds as people read them: 7.5 -> 0:07.5, 3661 -> 1:01:01.0."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


def tag_dicts(tags: Tags, top: int, threshold: float) -> list[dict[str, Any]]:
    """The likeliest classes of a window, for JSON."""
    return [
        {"index": label.index, "mid": label.mid, "label": label.name, "prob": round(p, 6)}
        for label, p in tags.top(top, threshold)
    ]


def tag_text(tags: Tags, top: int, threshold: float) -> str:
    """The likeliest classes of a window, in a line."""
    return "  ".join(f"{label.name} {p:.2f}" for label, p in tags.top(top, threshold)) or "-"


@dataclass
class JsonLines:
    """One JSON object per line: type tags, event or note."""

    top: int
    threshold: float
    events_only: bool

    def tags(self, tags: Tags, active: list[int], stats: ListenStats) -> None:
        if not self.events_only:
            found = tag_dicts(tags, self.top, self.threshold)
            names = [labels()[i].name for i in active]
            self._put(
                type="tags", start_s=tags.start_s, end_s=tags.end_s, tags=found, active=names, skipped=stats.skipped
            )

    def event(self, event: Event) -> None:
        label = labels()[event.index]
        times = {"start_s": round(event.start_s, 3), "end_s": round(event.end_s, 3)}
        self._put(type="event", index=label.index, mid=label.mid, label=label.name, **times, peak=round(event.peak, 6))

    def note(self, text: str) -> None:
        log.warning("%s", text)

    def _put(self, **fields: Any) -> None:
        click.echo(json.dumps(fields))


@dataclass
class TextLines:
    """A line per window and per event that has ended; or events alone."""

    top: int
    threshold: float
    events_only: bool

    def tags(self, tags: Tags, active: list[int], stats: ListenStats) -> None:
        if not self.events_only:
            found = tag_text(tags, self.top, self.threshold)
            click.echo(f"{clock(tags.start_s):>9} - {clock(tags.end_s):>9}  {found}")

    def event(self, event: Event) -> None:
        click.echo(event_text(event))

    def note(self, text: str) -> None:
        log.warning("%s", text)


def event_text(event: Event) -> str:
    """An event as a line of text."""
    name = labels()[event.index].name
    return f"{clock(event.start_s):>9} - {clock(event.end_s):>9}  {name} (at most {event.peak:.2f})"


class Screen:
    """The top tags as bars that are drawn again in place; events and notes scroll past above them."""

    def __init__(self, top: int, threshold: float, events_only: bool) -> None:
        self._top, self._threshold, self._events_only = top, threshold, events_only
        self._drawn: list[str] = []

    def tags(self, tags: Tags, active: list[int], stats: ListenStats) -> None:
        skipped = f", {stats.skipped} windows skipped" if stats.skipped else ""
        lines = [f"{clock(tags.end_s)}{skipped}"]
        if self._events_only:
            lines[0] += "  " + ", ".join(labels()[i].name for i in active)
        else:
            found = tags.top(self._top, self._threshold)
            lines += [
                f"{p:5.2f} {'#' * round(20 * p):20} {label.name}{' *' * (label.index in active)}" for label, p in found
            ]
        self._draw(lines)

    def event(self, event: Event) -> None:
        self.note(event_text(event))

    def note(self, text: str) -> None:
        """A line that stays."""
        drawn = self._drawn
        self._erase()
        click.echo(text)
        self._draw(drawn)

    def _erase(self) -> None:
        if self._drawn:
            click.echo(f"\x1b[{len(self._drawn)}F\x1b[J", nl=False, color=True)
        self._drawn = []

    def _draw(self, lines: list[str]) -> None:
        terminal = shutil.get_terminal_size()
        self._erase()
        self._drawn = lines[: terminal.lines - 1]  # what has scrolled off cannot be erased, and the cursor needs a row
        for line in self._drawn:
            click.echo(line[: terminal.columns - 1])  # a wrapped line would count twice


def show_in(as_json: bool, terminal: bool, top: int, threshold: float, events_only: bool) -> Show:
    """The `top` tags of at least `threshold`, and events; or events alone."""
    if as_json:
        return JsonLines(top, threshold, events_only)
    return Screen(top, threshold, events_only) if terminal else TextLines(top, threshold, events_only)
