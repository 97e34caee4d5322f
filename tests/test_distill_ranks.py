"""Four processes of torchrun on one machine: the same store, the same training, and what happens when one dies."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import (
    RATE_HZ,
    Notes,
    config,
    learnt,
    make_stream,
    run_command,
    small_student,
    start_command,
    wait_for_steps,
)
from tiny_teach import files, make_teacher
from torch import nn

from ced_edge.network.checkpoint import load_model
from distill.training import train as training
from distill.training.batches import Batch, Batches, TrainingData
from distill.training.log import read_log
from distill.training.loop import MODEL_NAME
from distill.training.train import train

RANKS = 4
ENDED_WITHIN_S = 30.0


@pytest.fixture(autouse=True)
def _small_student() -> Iterator[None]:
    with small_student():
        yield


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return make_stream(tmp_path_factory.mktemp("data"))


def rank_pid(process: subprocess.Popen[str], rank: int) -> int:
    """The process id of a rank that torchrun, `process`, has started."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no rank {rank}")


def own_lines(err: str) -> list[str]:
    """The lines of this program, except those about progress."""
    return [line for line in err.splitlines() if re.match(r"ced-edge: (?!train: |teach: )", line)]


def kill_rank(process: subprocess.Popen[str], rank: int) -> list[str]:
    """Kill a rank and return what the others report. All of them must have ended in time."""
    pid = rank_pid(process, rank)
    os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert time.monotonic() - start < ENDED_WITHIN_S, err
    assert process.returncode != 0
    lines = own_lines(err)
    assert len(lines) == 1, err
    assert f"process {pid} on " in lines[0], err
    return lines


def training_command(stream: TrainingData, run: Path, steps: int) -> list[object]:
    flags = ["--batch", 8, "--workers", 0, "--log-every", 1, "--precision", "fp32", "--checkpoint-minutes", 0]
    where = ["--pack", stream.pack.location, "--store", stream.store.path, "--out", run]
    return ["train", *where, "--steps", steps, *flags, "--resume"]


def test_a_training_rank_that_dies_is_named_and_the_next_run_goes_on_exactly(
    stream: TrainingData, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start_command(*training_command(stream, parts, 40), torchrun=RANKS)
    wait_for_steps(parts, 3, process)
    (line,) = kill_rank(process, 2)
    assert line.startswith("ced-edge: rank 2 (process ")
    assert "died, perhaps because memory was full: run the same again to go on" in line
    for run in (parts, whole):
        done = run_command(*training_command(stream, run, 40), torchrun=RANKS)
        assert done.returncode == 0, done.stderr
    assert learnt(parts) == learnt(whole)
    assert (parts / MODEL_NAME).read_bytes() == (whole / MODEL_NAME).read_bytes()


def test_the_first_rank_may_die_too(stream: TrainingData, tmp_path: Path) -> None:
    process = start_command(*training_command(stream, tmp_path, 10_000), torchrun=2)
    wait_for_steps(tmp_path, 2, process)
    (line,) = kill_rank(process, 0)
    assert line.startswith("ced-edge: rank 0 (process ")


def test_four_processes_train_as_one_with_the_same_batches(
    stream: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After six steps the norms of the gradients are equal to 1e-4, and the weights to 1e-4 in the mean.

    The largest difference of a weight may be as large as one step of AdamW at this learning rate: where a gradient is
    almost 0, its sign is chance.

    A rank normalises the mel bins by its own part of the batch: the one process gets all parts in one batch, and does
    the same. The statistics that it keeps of them for later use differ, as those of DDP come from the first rank.
    """
    steps = 6
    done = run_command(*training_command(stream, tmp_path / "four", steps), torchrun=RANKS)
    assert done.returncode == 0, done.stderr
    parts = [TrainingData(stream.pack, stream.store, stream.recipe, 2, RATE_HZ, rank=r, world=RANKS) for r in range(4)]
    readers = [list(itertools.islice(Batches(part), steps)) for part in parts]
    batches = [Batch(*(torch.cat(column) for column in zip(*rows, strict=True))) for rows in zip(*readers, strict=True)]
    monkeypatch.setattr(training, "loader", lambda *_, **__: (batch for batch in batches))
    normalise = nn.BatchNorm2d.forward

    def by_part(self: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([normalise(self, part) for part in x.chunk(RANKS)])

    monkeypatch.setattr(nn.BatchNorm2d, "forward", by_part)
    train(tmp_path / "one", stream, config(steps=steps, batch=8, lr=2e-3, ema=0.998), reporter=Notes())
    norms = [[row["grad"] for row in read_log(tmp_path / name)] for name in ("four", "one")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    four, one = (dict(load_model(tmp_path / name).requires_grad_(False).named_parameters()) for name in ("four", "one"))
    change = torch.cat([(four[name] - one[name]).abs().flatten() for name in one])
    assert change.mean() < 1e-4
    assert change.max() < 2e-3


def test_four_processes_write_the_same_store_and_one_that_dies_is_named(stream: TrainingData, tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path)

    def teaching(out: str, windows: str) -> list[object]:
        where = ["--pack", stream.pack.location, "--out", tmp_path / out, "--windows", windows, "--workers", 1]
        return ["teach", *where, "--teacher", f"{teacher.name}={teacher.source}"]

    done = run_command(*teaching("one", "4x0.5"))
    assert done.returncode == 0, done.stderr
    process = start_command(*teaching("four", "2000x0.5"), torchrun=RANKS)
    while len(list(tmp_path.glob("four/e000/*.parquet"))) < RANKS:  # each rank has a shard
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    (line,) = kill_rank(process, 3)
    assert line.startswith("ced-edge: rank 3 (process ")
    done = run_command(*teaching("again", "4x0.5"), torchrun=RANKS)
    assert done.returncode == 0, done.stderr
    wanted = files(tmp_path / "one")
    assert files(tmp_path / "again") == wanted
    finished = {
        name: data for name, data in files(tmp_path / "four").items() if name in wanted and name != "store.json"
    }
    assert finished
    assert finished.items() <= wanted.items()
