"""What a training run says: a CSV, TensorBoard, a progress line, and a warning on the plateau."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ced_edge.errors import InputError
from ced_edge.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

LOG_NAME = "log.csv"
FIELDS = ("step", "loss", "bce", "kl", "spread", "teacher_spread", "grad", "lr", "clips_per_s")
PLATEAU = 0.1
"""Below this share of the teacher's spread over clips, predictions are nearly the same for every clip."""


class Reporter(Protocol):
    """Whoever shows progress to a person."""

    def update(self, step: int, steps: int, text: str) -> None:
        """Progress, and a few words on it."""

    def warn(self, text: str) -> None:
        """One line that must be seen."""


class TrainLog:
    """`log.csv` and `tensorboard/` of a run; on resumption lines from later steps are dropped."""

    fields: tuple[str, ...] = FIELDS

    def __init__(self, run: Path, step: int, steps: int, reporter: Reporter | None) -> None:
        self.run, self.steps, self.reporter = run, steps, reporter
        self._then, self._last = time.monotonic(), step
        self._warned = False
        self._first = step

    def __enter__(self) -> TrainLog:
        if self.reporter is None:
            return self
        from torch.utils.tensorboard.writer import SummaryWriter

        rows = [row for row in _read_rows(self.run / LOG_NAME) if float(row["step"]) <= self._first]
        with atomic_path(self.run / LOG_NAME) as path, path.open("w", newline="") as f:
            writer = csv.DictWriter(f, self.fields)
            writer.writeheader()
            writer.writerows(rows)
        self._file = (self.run / LOG_NAME).open("a", newline="")
        self._csv = csv.DictWriter(self._file, self.fields)
        self._board = SummaryWriter(str(self.run / "tensorboard"), purge_step=self._first + 1)
        return self

    def __exit__(self, *_: object) -> None:
        if self.reporter is not None:
            self._file.close()
            self._board.close()

    def write(self, step: int, values: dict[str, Tensor], lr: float, batch: int) -> None:
        """One line: values of this step, and the rate since the last line."""
        if self.reporter is None:
            return
        now = time.monotonic()
        rate = (step - self._last) * batch / max(now - self._then, 1e-9)
        self._then, self._last = now, step
        row = {name: value.item() for name, value in values.items()} | {"lr": lr, "clips_per_s": rate}
        self._csv.writerow({"step": step, **{k: f"{v:.6g}" for k, v in row.items()}})
        self._file.flush()
        for name, value in row.items():
            self._board.add_scalar(name, value, step)
        self.reporter.update(step, self.steps, f"{self.describe(row)}, {rate:.0f} clips/s")
        warning = self.watch(row)
        if warning and step > 0.2 * self.steps and not self._warned:
            self._warned = True
            self.reporter.warn(f"step {step}: {warning}")

    def describe(self, row: dict[str, float]) -> str:
        """A line in words."""
        return f"loss {row['loss']:.4f}, spread {row['spread']:.3f} of {row['teacher_spread']:.3f}"

    def watch(self, row: dict[str, float]) -> str:
        """What is wrong with a line, if it goes on after the start; else nothing."""
        if row["spread"] >= PLATEAU * row["teacher_spread"]:
            return ""
        return (
            f"predictions are nearly the same for every clip (spread {row['spread']:.3f}, the "
            f"teachers' is {row['teacher_spread']:.3f}): the cold-start plateau; raise --kl or start with --init"
        )


def read_log(run: Path) -> list[dict[str, float]]:
    """The lines of a run's log. Raises InputError when they are no numbers."""
    return [{name: float(value) for name, value in row.items()} for row in _read_rows(run / LOG_NAME)]


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The whole lines of a log, as text; a killed run may leave part of one at the end."""
    if not path.exists():
        return []
    try:
        with path.open(newline="") as f:
            rows = [row for row in csv.DictReader(f) if row["clips_per_s"]]
        for row in rows:
            _ = [float(value) for value in row.values()]
    except (ValueError, TypeError, KeyError) as e:
        raise InputError(f"{path} is broken ({e}): delete it") from e
    return rows
