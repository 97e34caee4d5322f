"""The record of a training run: `log.csv`, TensorBoard, the progress line, and a warning on the plateau."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ced_edge.errors import InputError
from ced_edge.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

LOG_NAME = "log.csv"
PLATEAU = 0.1
"""Warn when the student's spread is below this share of the teachers': its predictions hardly depend on the clip."""


class Reporter(Protocol):
    """Something that shows the progress of a run, for example a progress bar."""

    def update(self, step: int, steps: int, text: str) -> None:
        """Called after each step; `text` describes the newest line of the log."""


class TrainLog:
    """`log.csv` and `tensorboard/` of a run. When a run continues, lines after the step it continues from are dropped.

    Under torchrun only the first process has one.
    """

    fields: tuple[str, ...] = ("step", "loss", "bce", "kl", "spread", "teacher_spread", "grad", "lr", "clips_per_s")

    def __init__(self, run: Path, step: int, steps: int, reporter: Reporter | None = None) -> None:
        """The run is at `step` of `steps`. The reporter only shows the log: without one it is written all the same."""
        self.run, self.first, self.steps, self.reporter = run, step, steps, reporter
        self._text = ""
        self._warned = False

    def __enter__(self) -> TrainLog:
        from torch.utils.tensorboard.writer import SummaryWriter

        # A killed run may have logged steps after its last checkpoint. They are taken again, so their lines go.
        rows = [row for row in _read_rows(self.run / LOG_NAME) if float(row["step"]) <= self.first]
        with atomic_path(self.run / LOG_NAME) as path, path.open("w", newline="") as f:
            writer = csv.DictWriter(f, self.fields)
            writer.writeheader()
            writer.writerows(rows)
        self._file = (self.run / LOG_NAME).open("a", newline="")
        self._csv = csv.DictWriter(self._file, self.fields)
        self._board = SummaryWriter(str(self.run / "tensorboard"), purge_step=self.first + 1)
        self._last_s, self._last_step = time.monotonic(), self.first
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()

    def write(self, step: int, values: dict[str, Tensor], lr: float, batch: int) -> None:
        """Write one line: the values of this step, and clips per second since the line before."""
        now = time.monotonic()
        rate = (step - self._last_step) * batch / max(now - self._last_s, 1e-9)
        self._last_s, self._last_step = now, step
        row = {name: value.item() for name, value in values.items()} | {"lr": lr, "clips_per_s": rate}
        self._csv.writerow({"step": step, **{k: f"{v:.6g}" for k, v in row.items()}})
        self._file.flush()
        for name, value in row.items():
            self._board.add_scalar(name, value, step)
        self._text = f"{self.describe(row)}, {rate:.0f} clips/s"
        # In the first fifth of a run even a healthy student is near the plateau. One warning is enough.
        problem = self.problem(row)
        if problem and step > 0.2 * self.steps and not self._warned:
            self._warned = True
            log.warning("step %d: %s", step, problem)

    def report(self, step: int) -> None:
        """Show that this step is done."""
        if self.reporter is not None:
            self.reporter.update(step, self.steps, self._text)

    def describe(self, row: dict[str, float]) -> str:
        """A line of the log in words."""
        return f"loss {row['loss']:.4f}, spread {row['spread']:.3f} of {row['teacher_spread']:.3f}"

    def problem(self, row: dict[str, float]) -> str:
        """What is wrong if a line looks like this after the start of a run; empty if nothing is."""
        if row["spread"] >= PLATEAU * row["teacher_spread"]:
            return ""
        return (
            f"predictions are nearly the same for every clip (spread {row['spread']:.3f}, the "
            f"teachers' is {row['teacher_spread']:.3f}): the cold-start plateau; raise --kl or start with --init"
        )


def read_log(run: Path) -> list[dict[str, float]]:
    """The lines of a run's log; none if it has no log. Raises InputError when a value is not a number."""
    return [{name: float(value) for name, value in row.items()} for row in _read_rows(run / LOG_NAME)]


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The complete lines of a log, as text."""
    if not path.exists():
        return []
    try:
        with path.open(newline="") as f:
            # A killed run may leave half a line at the end: it has no value in the last column.
            rows = [row for row in csv.DictReader(f) if row["clips_per_s"]]
        for row in rows:
            _ = [float(value) for value in row.values()]
    except (ValueError, TypeError, KeyError, csv.Error) as e:  # csv.Error: a value of more than 131,072 characters
        raise InputError(f"{path} is broken ({e}): delete it") from e
    return rows
