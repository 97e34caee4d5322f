"""Progress on stderr: a bar with a rate and the time left for everything that takes more than a moment."""

from __future__ import annotations

import contextlib
import sys
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

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line on stderr."""
    console.print(text, markup=False, soft_wrap=True)


def _bar(count: ProgressColumn | None = None) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        count or MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not sys.stderr.isatty(),
    )


@contextlib.contextmanager
def stage(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for `total` things; yields a function that is called with the number of them just done."""
    with _bar() as bar:
        task = bar.add_task(name, total=total, note="")
        if bar.disable:
            say(f"{name}: {total}")
        yield lambda n: bar.advance(task, n)


@contextlib.contextmanager
def download(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar in bytes; yields a function that is called with the bytes so far and, where it is known, their total."""
    with _bar(DownloadColumn()) as bar:
        task = bar.add_task(name, total=None, note="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


class TrainingBar:
    """Progress of a training run: steps, loss, rate, time left. Without a terminal: a plain line now and then."""

    def __init__(self, every: int = 200) -> None:
        self.every = every

    def __enter__(self) -> TrainingBar:
        self._bar = _bar()
        self._bar.start()
        self._task = self._bar.add_task("train", total=None, note="")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, step: int, steps: int, text: str) -> None:
        self._bar.update(self._task, completed=step, total=steps, note=text)
        if self._bar.disable and (step % self.every == 0 or step == steps):
            say(f"train: step {step} of {steps}, {text}")

    def warn(self, text: str) -> None:
        say(f"warning: {text}")
