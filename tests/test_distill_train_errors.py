"""What goes wrong in training is said in one line, and the last checkpoint is kept."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_run import (
    RATE_HZ,
    RECIPE,
    SMALL,
    Notes,
    config,
    make_pack,
    make_store,
    make_stream,
    small_student,
    start_command,
    stop_at,
    wait_for_steps,
)

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import load_model
from distill.teaching.store import TopK
from distill.teaching.views import ViewRecipe
from distill.training import loop
from distill.training.batches import TrainingData
from distill.training.log import LOG_NAME, TrainLog, read_log
from distill.training.loop import MODEL_NAME, STATE_NAME
from distill.training.train import train


@pytest.fixture(autouse=True)
def _small_student() -> Iterator[None]:
    with small_student():
        yield


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return make_stream(tmp_path_factory.mktemp("data"))


@pytest.fixture
def saved(stream: TrainingData, tmp_path: Path) -> Path:
    """A run that was stopped after step 4 of 12."""
    stop_at(4, tmp_path / "run", stream, config(steps=12))
    return tmp_path / "run"


def assert_kept(run: Path) -> None:
    """The checkpoint of step 4 is there, whole, and nothing else."""
    assert torch.load(run / STATE_NAME, weights_only=True)["step"] == 4
    with safe_open(run / MODEL_NAME, "pt") as f:
        assert f.metadata()["step"] == "4"
    assert [p.name for p in run.iterdir() if p.name.endswith(".tmp")] == []


def one_line(e: pytest.ExceptionInfo[CedEdgeError]) -> str:
    assert type(e.value) is CedEdgeError
    assert "\n" not in str(e.value)
    return str(e.value)


def test_an_absurd_learning_rate_is_reported_and_the_checkpoint_kept(
    stream: TrainingData, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "schedule", lambda *_: 1e30)
    with pytest.raises(CedEdgeError, match=r"gradient is not finite at step \d+ \(loss .*try a lower --lr") as e:
        train(saved, stream, config(steps=12))
    assert str(saved) in one_line(e)
    assert_kept(saved)


def test_poisoned_predictions_are_reported(stream: TrainingData, tmp_path: Path) -> None:
    poisoned = make_store(tmp_path / "store", stream.pack)
    nan = TopK.top_k(np.full((6, 527), np.nan, np.float32), 5)
    for shard in stream.pack.shards:  # a tail that is no number: eight bits cannot hold one
        poisoned.file(0, shard.name).unlink()
        answers = TopK(nan.index, np.zeros_like(nan.value) + 0.5, nan.tail)
        poisoned.write(0, shard.name, answers)
    with pytest.raises(CedEdgeError, match=r"not finite at step 0 \(loss nan\)"):
        train(
            tmp_path / "run",
            TrainingData(stream.pack, poisoned, RECIPE, 4, RATE_HZ),
            config(steps=12, prior_bias=False),
        )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA ran short"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory\nCompile with ..."),
    ],
)
def test_too_little_memory_is_reported(
    stream: TrainingData, saved: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def forward(*_: object) -> None:
        raise error

    monkeypatch.setattr(CED, "forward", forward)
    with pytest.raises(CedEdgeError, match="out of memory: use a --batch below 4") as e:
        train(saved, stream, config(steps=12))
    one_line(e)
    assert_kept(saved)


@pytest.mark.parametrize(
    "text",
    [
        "mat1 and mat2 shapes cannot be multiplied",
        "CUDA error: an illegal memory access was encountered",
        "the allocator of this backend cannot be replaced",
        "CUDNN_STATUS_ALLOC_FAILED",
        "view size is not compatible with the allocation of this tensor; the index runs out of memory bounds",
    ],
)
def test_other_errors_are_not_called_out_of_memory(
    stream: TrainingData, saved: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def forward(*_: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(CED, "forward", forward)
    with pytest.raises(RuntimeError, match=text[:20]):
        train(saved, stream, config(steps=12))
    assert_kept(saved)


@pytest.mark.parametrize("name", [MODEL_NAME, STATE_NAME])
def test_a_disk_that_is_full_while_saving_is_reported(stream: TrainingData, saved: Path, name: str) -> None:
    room = (saved / name).stat().st_size - 1_000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: int) -> None:
        if step == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))

    try:
        with pytest.raises(CedEdgeError, match=f"disk full while writing .*{name}") as e:
            train(saved, stream, config(steps=12), reporter=Notes(fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    one_line(e)
    assert torch.load(saved / STATE_NAME, weights_only=True)["step"] == 4
    assert load_model(saved).spec == SMALL
    assert [p.name for p in saved.iterdir() if p.name.endswith(".tmp")] == []
    train(saved, stream, config(steps=12))  # and goes on when there is room
    assert torch.load(saved / STATE_NAME, weights_only=True)["step"] == 12


def test_a_disk_that_is_full_while_logging_is_reported(
    stream: TrainingData, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TrainLog, "write", write)
    with pytest.raises(CedEdgeError, match="disk full: free some space") as e:
        train(saved, stream, config(steps=12), reporter=Notes())
    one_line(e)
    assert_kept(saved)


def test_a_renderer_that_dies_is_reported(stream: TrainingData, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--batch", 4, "--workers", 1, "--steps", 5_000, "--log-every", 1]
    process = start_command("train", "--pack", stream.pack.location, "--store", stream.store.path, "--out", run, *flags)
    wait_for_steps(run, 3, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert [line for line in err.splitlines() if line.startswith("ced-edge: a process that renders views died")]
    assert "Traceback" not in err


def test_a_run_of_another_recipe_is_refused_and_what_differs_named(
    stream: TrainingData, saved: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"was begun with other values of lr, steps: choose another"):
        train(saved, stream, config(steps=13, lr=1e-4))
    recipe = ViewRecipe(seed=1, windows=RECIPE.windows)
    other = make_store(tmp_path / "store", stream.pack, recipe)
    with pytest.raises(InputError, match=r"with other values of seed: "):
        train(saved, TrainingData(stream.pack, other, recipe, 4, RATE_HZ), config(steps=12))
    assert_kept(saved)
    # How often is saved and logged changes nothing in what is learnt.
    train(saved, stream, config(steps=12, checkpoint_minutes=9.0, log_every=5), reporter=Notes())
    assert [row["step"] for row in read_log(saved)] == [1, 2, 3, 4, 5, 10, 12]


@pytest.mark.parametrize("content", [b"", b"PK", b"no state at all", "half"])
def test_a_broken_state_is_refused(stream: TrainingData, saved: Path, content: bytes | str) -> None:
    whole = (saved / STATE_NAME).read_bytes()
    (saved / STATE_NAME).write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"state.pt is no training state .*delete it to start over") as e:
        train(saved, stream, config(steps=12))
    assert "\n" not in str(e.value)


def test_a_broken_log_is_refused_and_a_torn_last_line_is_not(stream: TrainingData, saved: Path) -> None:
    log = saved / LOG_NAME
    text = log.read_text()
    log.write_text(text + "5,0.1,0.")
    assert len(read_log(saved)) == 4
    train(saved, stream, config(steps=12), reporter=Notes())
    assert log.read_text().startswith(text)  # to the byte
    log.write_text(text.replace("2,", "two,", 1))
    with pytest.raises(InputError, match=r"log.csv is broken"):
        read_log(saved)
    log.write_text(text + "5," + "1" * 140_000)
    with pytest.raises(InputError, match=r"log.csv is broken .*delete it"):
        read_log(saved)


def test_a_store_of_another_pack_or_of_other_views_is_refused(stream: TrainingData, tmp_path: Path) -> None:
    other = make_pack(tmp_path / "other", n=20)
    with pytest.raises(InputError, match="is a store of another pack"):
        train(tmp_path / "run", TrainingData(other, stream.store, RECIPE, 4, RATE_HZ), config())
    with pytest.raises(InputError, match="holds predictions of other views"):
        train(tmp_path / "run", TrainingData(stream.pack, stream.store, ViewRecipe(), 4, RATE_HZ), config())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seconds", [0.1, 10.5])
def test_windows_that_the_student_cannot_hear_are_refused(stream: TrainingData, tmp_path: Path, seconds: float) -> None:
    recipe = ViewRecipe(windows=((1, 0.4), (1, seconds)))
    store = make_store(tmp_path / "store", stream.pack, recipe)
    with pytest.raises(InputError, match=f"views of {seconds:g} s do not fit the student, which takes 0.15 to 10.12 s"):
        train(tmp_path / "run", TrainingData(stream.pack, store, recipe, 4, RATE_HZ), config())


def test_an_unfinished_store_is_refused(stream: TrainingData, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", stream.pack)
    store.file(2, stream.pack.shards[0].name).unlink()
    with pytest.raises(InputError, match="has not finished this store"):
        train(tmp_path / "run", TrainingData(stream.pack, store, RECIPE, 4, RATE_HZ), config(workers=1))
