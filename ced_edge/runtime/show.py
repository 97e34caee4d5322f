"""Show tags and events: on a screen that is drawn again in place, as lines of text, or as lines of JSON."""

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
    """Seconds as minutes and hours: 7.5 -> 0:07.5, 3661 -> 1:01:01.0."""
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
    """The likeliest classes of a window as one line of text, or `-` when none reaches the threshold."""
    return "  ".join(f"{label.name} {p:.2f}" for label, p in tags.top(top, threshold)) or "-"


@dataclass
class JsonLines:
    """One JSON object per line, of the type `tags` or `event`."""

    top: int
    threshold: float
    events_only: bool

    def tags(self, tags: Tags, active: list[int], stats: ListenStats) -> None:
        if not self.events_only:
            top = tag_dicts(tags, self.top, self.threshold)
            names = [labels()[i].name for i in active]
            self._put(
                type="tags", start_s=tags.start_s, end_s=tags.end_s, tags=top, active=names, skipped=stats.skipped
            )

    def event(self, event: Event) -> None:
        label = event.label
        times = {"start_s": round(event.start_s, 3), "end_s": round(event.end_s, 3)}
        self._put(type="event", index=label.index, mid=label.mid, label=label.name, **times, peak=round(event.peak, 6))

    def note(self, text: str) -> None:
        log.warning("%s", text)

    def _put(self, **fields: Any) -> None:
        click.echo(json.dumps(fields))


@dataclass
class TextLines:
    """A line per window, and a line per event when it ends; or events alone."""

    top: int
    threshold: float
    events_only: bool

    def tags(self, tags: Tags, active: list[int], stats: ListenStats) -> None:
        if not self.events_only:
            text = tag_text(tags, self.top, self.threshold)
            click.echo(f"{clock(tags.start_s):>9} - {clock(tags.end_s):>9}  {text}")

    def event(self, event: Event) -> None:
        click.echo(event_text(event))

    def note(self, text: str) -> None:
        log.warning("%s", text)


def event_text(event: Event) -> str:
    """An event as a line of text."""
    return f"{clock(event.start_s):>9} - {clock(event.end_s):>9}  {event.label.name} (at most {event.peak:.2f})"


class Screen:
    """The top tags as bars, drawn again in place. Events and notes are lines above them, which stay."""

    def __init__(self, top: int, threshold: float, events_only: bool) -> None:
        self._top, self._threshold, self._events_only = top, threshold, events_only
        self._drawn: list[str] = []

    def tags(self, tags: Tags, active: list[int], stats: ListenStats) -> None:
        skipped = f", {stats.skipped} windows skipped" if stats.skipped else ""
        lines = [f"{clock(tags.end_s)}{skipped}"]
        if self._events_only:
            lines[0] += "  " + ", ".join(labels()[i].name for i in active)
        else:
            lines += [
                f"{p:5.2f} {'#' * round(20 * p):20} {label.name}{' *' * (label.index in active)}"
                for label, p in tags.top(self._top, self._threshold)
            ]
        self._draw(lines)

    def event(self, event: Event) -> None:
        self.note(event_text(event))

    def note(self, text: str) -> None:
        """Print a line that stays, above the bars."""
        drawn = self._drawn
        self._erase()
        click.echo(text)
        self._draw(drawn)

    def _erase(self) -> None:
        if self._drawn:
            # Move the cursor up to the first of our lines, and clear the terminal from there on. `color=True` keeps
            # click from removing these codes.
            click.echo(f"\x1b[{len(self._drawn)}F\x1b[J", nl=False, color=True)
        self._drawn = []

    def _draw(self, lines: list[str]) -> None:
        terminal = shutil.get_terminal_size()
        self._erase()
        # Lines that scrolled off cannot be erased, and the cursor needs a row of its own.
        self._drawn = lines[: terminal.lines - 1]
        for line in self._drawn:
            click.echo(line[: terminal.columns - 1])  # a line that wraps would take two rows, and we erase one


def show_in(as_json: bool, terminal: bool, top: int, threshold: float, events_only: bool) -> Show:
    """Choose how to show the `top` tags with a probability of at least `threshold`, and events; or events alone.

    `terminal` says whether stdout is a terminal: only there can a screen be drawn again.
    """
    if as_json:
        return JsonLines(top, threshold, events_only)
    return Screen(top, threshold, events_only) if terminal else TextLines(top, threshold, events_only)
