"""A run that was stopped, killed or terminated goes on exactly, in one process and in two."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import (
    QUICK,
    RATE_HZ,
    SMALL,
    Notes,
    config,
    learnt,
    make_store,
    make_stream,
    run_command,
    small_student,
    start_command,
    stop_at,
    wait_for_steps,
)

from ced_edge.errors import InputError
from ced_edge.network.checkpoint import load_model
from distill.pipeline import run_train
from distill.teaching.store import NotTaught
from distill.teaching.views import ViewRecipe
from distill.training import loop
from distill.training.batches import TrainingData
from distill.training.config import TrainConfig
from distill.training.log import LOG_NAME, read_log
from distill.training.loop import MODEL_NAME, STATE_NAME, Interrupted, stop_politely
from distill.training.train import train


@pytest.fixture(autouse=True)
def _small_student() -> Iterator[None]:
    with small_student():
        yield


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return make_stream(tmp_path_factory.mktemp("data"))


def same_files(a: Path, b: Path) -> bool:
    return a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stopped_run_goes_on_exactly(stream: TrainingData, tmp_path: Path, workers: int) -> None:
    chosen = config(steps=20, workers=workers)
    train(tmp_path / "whole", stream, chosen, reporter=Notes())
    stop_at(7, tmp_path / "parts", stream, chosen)
    assert [row["step"] for row in read_log(tmp_path / "parts")] == list(range(1, 8))
    stop_at(13, tmp_path / "parts", stream, chosen, signal.SIGTERM)
    train(tmp_path / "parts", stream, chosen, reporter=Notes())
    assert learnt(tmp_path / "parts") == learnt(tmp_path / "whole")
    assert len(learnt(tmp_path / "whole")) == 20
    assert same_files(tmp_path / "parts" / MODEL_NAME, tmp_path / "whole" / MODEL_NAME)


def test_clean_answers_go_on_exactly_too(stream: TrainingData, tmp_path: Path) -> None:
    clean = make_store(tmp_path / "store", stream.pack, clean=True)
    views = TrainingData(stream.pack, clean, ViewRecipe(windows=((5, 0.3),)), 4, RATE_HZ)
    train(tmp_path / "whole", views, config(steps=8), reporter=Notes())
    stop_at(3, tmp_path / "parts", views, config(steps=8))
    train(tmp_path / "parts", views, config(steps=8), reporter=Notes())
    assert learnt(tmp_path / "parts") == learnt(tmp_path / "whole")


def test_a_stop_has_the_exit_code_of_a_shell(stream: TrainingData, tmp_path: Path) -> None:
    notes = Notes(lambda step: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match=r"stopped at step 1 of 18: saved in .*; run the same again to continue") as e:
        train(tmp_path, stream, config(), reporter=notes)
    assert e.value.exit_code == 130


def test_a_second_ctrl_c_stops_at_once_and_the_old_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_politely() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGINT)
        assert stop == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_outside_the_main_thread_works(stream: TrainingData, tmp_path: Path) -> None:
    done: list[Path] = []
    thread = threading.Thread(target=lambda: done.append(train(tmp_path, stream, config(steps=2))))
    thread.start()
    thread.join()
    assert done == [tmp_path / MODEL_NAME]


def test_a_checkpoint_comes_every_so_many_minutes(
    stream: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(loop, "save_state", lambda path, state: saved.append(state["step"]))
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def later(step: int) -> None:
        now[0] += 20.0  # seconds that a step takes

    train(tmp_path, stream, config(steps=10, checkpoint_minutes=1.0), reporter=Notes(later))
    assert saved == [4, 8, 10]


@pytest.mark.parametrize("between", ["before the weights", "between weights and state"])
def test_a_run_killed_while_saving_goes_on_exactly(
    stream: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    chosen = config(steps=8, checkpoint_minutes=0.0)
    train(tmp_path / "whole", stream, chosen, reporter=Notes())

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        if json.loads((tmp_path / "parts" / "step").read_text()) == 5:
            raise Killed

    name = "save_model" if between == "before the weights" else "save_state"
    real: Callable[..., None] = getattr(loop, name)

    def save(*arguments: Any) -> None:
        die()
        real(*arguments)

    (tmp_path / "parts").mkdir()
    notes = Notes(lambda step: (tmp_path / "parts" / "step").write_text(str(step)) and None)
    monkeypatch.setattr(loop, name, save)
    with pytest.raises(Killed):
        train(tmp_path / "parts", stream, chosen, reporter=notes)
    assert torch.load(tmp_path / "parts" / STATE_NAME, weights_only=True)["step"] == 4
    monkeypatch.setattr(loop, name, real)
    train(tmp_path / "parts", stream, chosen, reporter=Notes())
    assert learnt(tmp_path / "parts") == learnt(tmp_path / "whole")
    assert same_files(tmp_path / "parts" / MODEL_NAME, tmp_path / "whole" / MODEL_NAME)


@pytest.fixture(scope="module")
def whole(stream: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command line, from its start to its end, saving after each step."""
    run = tmp_path_factory.mktemp("whole")
    done = run_command(*training(stream, run))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / MODEL_NAME)
    return run


def training(stream: TrainingData, run: Path) -> list[object]:
    flags = {**QUICK, "steps": 60, "workers": 1, "checkpoint_minutes": 0}
    options = [part for k, v in flags.items() for part in ("--" + k.replace("_", "-"), v)]
    return ["train", "--pack", stream.pack.location, "--store", stream.store.path, "--out", run, "--resume", *options]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_was_stopped_goes_on_exactly(
    stream: TrainingData, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Signals go to the whole process group, as a terminal sends Ctrl-C: to the workers too."""
    process = start_command(*training(stream, tmp_path))
    wait_for_steps(tmp_path, 8, process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=120)
    state = torch.load(tmp_path / STATE_NAME, weights_only=True)
    assert 7 <= state["step"] < 60
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, (out, err)
        assert err.strip().splitlines()[-1].startswith(f"ced-edge: stopped at step {state['step']} of 60: saved in")
        assert "Traceback" not in err
        assert read_log(tmp_path)[-1]["step"] == state["step"]
    (tmp_path / f".{STATE_NAME}.123.tmp").write_text("half of one")
    done = run_command(*training(stream, tmp_path))
    assert done.returncode == 0, done.stderr
    assert learnt(tmp_path) == learnt(whole)
    assert same_files(tmp_path / MODEL_NAME, whole / MODEL_NAME)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


# Several processes.


def test_two_processes_train_one_model_and_stop_together(stream: TrainingData, tmp_path: Path) -> None:
    """torchrun passes a termination on; both leave after the same step, the first one saves, and both go on exactly."""
    flags = ["--steps", 50, "--batch", 8, "--workers", 1, "--log-every", 1, "--precision", "fp32", "--resume"]

    def wanted(run: Path) -> list[object]:
        return ["train", "--pack", stream.pack.location, "--store", stream.store.path, "--out", run, *flags]

    parts, whole = tmp_path / "parts", tmp_path / "whole"
    process = start_command(*wanted(parts), torchrun=2)
    wait_for_steps(parts, 5, process)
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    state = torch.load(parts / STATE_NAME, weights_only=True)
    assert 5 <= state["step"] < 50, err
    assert f"stopped at step {state['step']} of 50" in err
    for run in (parts, whole):
        done = run_command(*wanted(run), torchrun=2)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(run / MODEL_NAME)]
    assert [row["step"] for row in read_log(parts)] == list(range(1, 51))
    assert learnt(parts) == learnt(whole)
    assert same_files(parts / MODEL_NAME, whole / MODEL_NAME)
    shown = sorted(p.name for p in whole.iterdir() if not p.name.startswith("."))
    assert shown == [LOG_NAME, MODEL_NAME, STATE_NAME, "tensorboard"]
    assert load_model(whole).spec == SMALL
    alone = TrainConfig(steps=50, batch=8, workers=1, precision="fp32")
    with pytest.raises(InputError, match="begun with other values of processes: "):
        train(parts, stream, alone)


def test_a_batch_that_processes_cannot_share_is_refused(
    stream: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="--batch 4 cannot be shared by 3 processes"):
        run_train(tmp_path, stream.pack, stream.store, config())


def test_a_run_waits_for_predictions_that_are_not_there_yet(stream: TrainingData, tmp_path: Path) -> None:
    """The run is saved at the first missing prediction. Later it continues, and the result is that of a whole store."""
    chosen = config(workers=1)
    train(tmp_path / "whole", stream, chosen, reporter=Notes())
    last = [stream.store.file(1, shard.name) for shard in stream.pack.shards]
    away = [file.rename(tmp_path / file.name) for file in last]
    with pytest.raises(NotTaught, match="has not finished this store"):
        train(tmp_path / "parts", stream, chosen, reporter=Notes())
    assert torch.load(tmp_path / "parts" / STATE_NAME, weights_only=True)["step"] == 6  # a pass, and not a step more
    for file, place in zip(away, last, strict=True):
        file.rename(place)
    train(tmp_path / "parts", stream, chosen, reporter=Notes())
    assert learnt(tmp_path / "parts") == learnt(tmp_path / "whole")
    assert same_files(tmp_path / "parts" / MODEL_NAME, tmp_path / "whole" / MODEL_NAME)
