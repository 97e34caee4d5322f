"""Progress on stderr: a bar with a rate and the time left on a terminal; a line now and then in log files and CI."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

log = logging.getLogger(__name__)

LINE_EVERY_S = 30.0
"""Without a terminal, a line is written when this much time has passed since the last one. Half a minute, because a
line comes with the end of a step or a clip, which may itself take a while: a reader is promised a line per minute."""


def _bar(count: ProgressColumn | None = None) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        count or MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True, highlight=False),
        disable=not sys.stderr.isatty(),
    )


class ProgressBar:
    """Progress of one stage, as a bar or as lines. Use it as a context manager."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._line_s = self._start_s = 0.0
        self._first: int | None = None

    def __enter__(self) -> ProgressBar:
        self._bar = _bar()
        self._bar.start()
        self._task = self._bar.add_task(self.name, total=None, note="")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` are done; `text` is shown beside it."""
        now = time.monotonic()
        if self._first is None:
            # The first call may come in the middle of a run that continues: what was done before has no rate.
            self._first, self._start_s = done, now
            self._bar.reset(self._task, completed=done, total=total)
        self._bar.update(self._task, completed=done, total=total, note=text)
        due = done == total or self._line_s == 0.0 or now - self._line_s >= LINE_EVERY_S
        if self._bar.disable and due:
            self._line_s = now
            left = time_left(done - self._first, total - done, now - self._start_s)
            log.info("%s", ", ".join(part for part in (f"{self.name}: {done} of {total}", text, left) if part))


def time_left(done: int, left: int, seconds: float) -> str:
    """When `done` things took `seconds`: the time for `left` more, in words; empty while it cannot be estimated."""
    if not left or not done:
        return ""
    rest = round(seconds / done * left)
    if rest < 60:
        return f"{rest} s left"
    minutes = (rest + 59) // 60
    return f"{minutes} min left" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min left"


@contextlib.contextmanager
def stage(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress of `total` things; yields a function that is called with the number of things just done."""
    done = 0
    with ProgressBar(name) as bar:

        def advance(n: int) -> None:
            nonlocal done
            done += n
            bar.update(done, total)

        advance(0)
        yield advance


@contextlib.contextmanager
def download(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar in bytes; yields a function that is called with the bytes so far and the total, None if it is unknown."""
    with _bar(DownloadColumn()) as bar:
        task = bar.add_task(name, total=None, note="")
        yield lambda done, total: bar.update(task, completed=done, total=total)
