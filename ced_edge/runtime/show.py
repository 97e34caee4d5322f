"""Show tags and events: on a screen that is drawn again in place, as lines of text, or as lines of JSON."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

import click

from ced_edge.audio.level import Level
from ced_edge.labels import labels
from ced_edge.machine import redraws
from ced_edge.runtime.clock import clock, date_time
from ced_edge.runtime.events import Event
from ced_edge.runtime.listen import ListenStats, Show
from ced_edge.runtime.tagger import Tags

log = logging.getLogger(__name__)


def tag_dicts(tags: Tags, top: int, threshold: float) -> list[dict[str, Any]]:
    """The likeliest classes of a window, for JSON."""
    return [
        {"index": label.index, "mid": label.mid, "label": label.name, "prob": round(p, 6)}
        for label, p in tags.top(top, threshold)
    ]


def tag_text(tags: Tags, top: int, threshold: float) -> str:
    """The likeliest classes of a window as one line of text, or `-` when none reaches the threshold."""
    return "  ".join(f"{label.name} {p:.2f}" for label, p in tags.top(top, threshold)) or "-"


def level_dict(level: Level | None) -> dict[str, float | None]:
    """The level of a window, for JSON. Digital zeros have no level in dB, so theirs is null."""
    if level is None:
        return {}
    values = {"level_dbfs": level.rms_dbfs, "peak_dbfs": level.peak_dbfs, "gain_db": level.gain_db}
    return {name: round(value, 2) if math.isfinite(value) else None for name, value in values.items()}


def level_text(level: Level | None) -> str:
    """The level of a window, in 11 characters."""
    if level is None:
        return ""
    return "zeros      " if level.zeros else f"{level.rms_dbfs:6.1f} dBFS"


@dataclass
class JsonLines:
    """One JSON object per line, of the type `tags`, `event` or `gap`."""

    top: int
    threshold: float
    events_only: bool

    def tags(self, tags: Tags, active: list[int], stats: ListenStats) -> None:
        if not self.events_only:
            self._put(
                "tags",
                tags.start_s,
                tags.end_s,
                stats,
                **level_dict(tags.level),
                tags=tag_dicts(tags, self.top, self.threshold),
                active=[labels()[i].name for i in active],
                skipped=stats.skipped,
            )

    def event(self, event: Event, stats: ListenStats) -> None:
        label = event.label
        what = {"index": label.index, "mid": label.mid, "label": label.name, "peak": round(event.peak, 6)}
        self._put("event", round(event.start_s, 3), round(event.end_s, 3), stats, **what)

    def gap(self, start_s: float, end_s: float, stats: ListenStats) -> None:
        self._put("gap", round(start_s, 3), round(end_s, 3), stats)

    def note(self, text: str) -> None:
        log.warning("%s", text)

    def _put(self, type: str, start_s: float, end_s: float, stats: ListenStats, **fields: Any) -> None:
        times: dict[str, Any] = {"start_s": start_s, "end_s": end_s}
        if (began := stats.started_unix_s) is not None:
            times |= {"time": date_time(began + start_s), "end_time": date_time(began + end_s)}
        click.echo(json.dumps({"type": type, **times, **fields}))


@dataclass
class TextLines:
    """A line per window, and a line per event when it ends; or events alone. `columns` is the width of a terminal."""

    top: int
    threshold: float
    events_only: bool
    columns: int | None = None

    def tags(self, tags: Tags, active: list[int], stats: ListenStats) -> None:
        if not self.events_only:
            text = tag_text(tags, self.top, self.threshold)
            self._put(f"{clock(tags.start_s):>9} - {clock(tags.end_s):>9}  {level_text(tags.level)}  {text}")

    def event(self, event: Event, stats: ListenStats) -> None:
        self._put(event_text(event))

    def gap(self, start_s: float, end_s: float, stats: ListenStats) -> None:
        pass  # the note is enough

    def note(self, text: str) -> None:
        log.warning("%s", text)

    def _put(self, text: str) -> None:
        click.echo(text if self.columns is None else fit(text, self.columns))


def event_text(event: Event) -> str:
    """An event as a line of text."""
    return f"{clock(event.start_s):>9} - {clock(event.end_s):>9}  {event.label.name} (at most {event.peak:.2f})"


def fit(text: str, columns: int) -> str:
    """A line of text for a terminal of so many columns: if it is longer, without padding, and on several lines."""
    if len(text) < columns:
        return text
    return "\n".join(textwrap.wrap(" ".join(text.split()), max(2, columns - 1), subsequent_indent=" "))


class Screen:
    """The top tags as bars, drawn again in place. Events and notes are lines above them, which stay."""

    def __init__(self, top: int, threshold: float, events_only: bool) -> None:
        self._top, self._threshold, self._events_only = top, threshold, events_only
        self._drawn: list[str] = []

    def tags(self, tags: Tags, active: list[int], stats: ListenStats) -> None:
        skipped = f", {stats.skipped} windows skipped" if stats.skipped else ""
        lines = [f"{clock(tags.end_s)} {level_text(tags.level)}".rstrip() + skipped]
        if self._events_only:
            lines[0] += "  " + ", ".join(labels()[i].name for i in active)
        else:
            top = tags.top(self._top, self._threshold)
            # The bars get the room that the names leave.
            names = [f"{label.name}{' *' * (label.index in active)}" for label, _ in top]
            room = _columns() - 8 - max(map(len, names), default=0)
            bar = min(20, room) if room >= 5 else 0
            for name, (_, p) in zip(names, top, strict=True):
                lines.append(f"{p:5.2f} {'#' * round(bar * p):{bar}} {name}" if bar else f"{p:.2f} {name}")
        self._draw(lines)

    def event(self, event: Event, stats: ListenStats) -> None:
        self.note(event_text(event))

    def gap(self, start_s: float, end_s: float, stats: ListenStats) -> None:
        pass  # the note is enough

    def note(self, text: str) -> None:
        """Print a line that stays, above the bars."""
        drawn = self._drawn
        self._erase()
        click.echo(fit(text, _columns()))
        self._draw(drawn)

    def _erase(self) -> None:
        if self._drawn:
            # Move the cursor up to the first of our lines, and clear the terminal from there on. `color=True` keeps
            # click from removing these codes.
            click.echo(f"\x1b[{len(self._drawn)}F\x1b[J", nl=False, color=True)
        self._drawn = []

    def _draw(self, lines: list[str]) -> None:
        self._erase()
        # Lines that scrolled off cannot be erased, and the cursor needs a row of its own.
        self._drawn = lines[: shutil.get_terminal_size().lines - 1]
        for line in self._drawn:
            click.echo(line[: _columns() - 1])  # a line that wraps would take two rows, and we erase one


def _columns() -> int:
    return shutil.get_terminal_size().columns


def show_in(as_json: bool, top: int, threshold: float, events_only: bool) -> Show:
    """Choose how to show the `top` tags with a probability of at least `threshold`, and events; or events alone.

    Only a terminal can draw a screen again, see `redraws`.
    """
    if as_json:
        return JsonLines(top, threshold, events_only)
    if redraws(sys.stdout):
        return Screen(top, threshold, events_only)
    return TextLines(top, threshold, events_only, _columns() if sys.stdout.isatty() else None)
