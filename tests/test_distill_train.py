"""Training: the loss falls, a stopped run goes on exactly, and what goes wrong is said in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_run import (
    HERTZ,
    QUICK,
    RATE_HZ,
    RECIPE,
    SMALL,
    Notes,
    command,
    environment,
    learnt,
    make_pack,
    make_store,
    run_command,
)

from ced_edge.checkpoint import git_revision, load_model, read_metadata
from ced_edge.errors import InputError
from ced_edge.labels import labels_hash
from ced_edge.spec import SIZES, ModelSpec
from distill import train as train_module
from distill.config import TrainConfig
from distill.dataset import Stream
from distill.train import (
    MODEL_NAME,
    STATE_NAME,
    Interrupted,
    stop_politely,
    train,
    warm_ema,
)
from distill.trainlog import LOG_NAME, read_log
from distill.views import ViewRecipe


@pytest.fixture(autouse=True)
def small_student(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(SIZES, "tiny", SMALL)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = tmp_path_factory.mktemp("data")
    packed = make_pack(folder)
    return Stream(packed, make_store(folder / "store", packed), RECIPE, 4, RATE_HZ)


def config(**fields: Any) -> TrainConfig:
    return TrainConfig(**{**QUICK, **fields})


def same_files(a: Path, b: Path) -> bool:
    return a.read_bytes() == b.read_bytes()


# What a run leaves.


def test_the_loss_falls_and_the_student_tells_the_tones_apart(stream: Stream, tmp_path: Path) -> None:
    recipe = ViewRecipe(windows=((5, 0.4),), mix=(1.0,))
    views = Stream(stream.pack, make_store(tmp_path / "store", stream.pack, recipe), recipe, 8, RATE_HZ)
    notes = Notes()
    weights = train(tmp_path, views, config(steps=80, batch=8, lr=1e-2), reporter=notes)
    rows = read_log(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 81))
    first, last = ({k: np.mean([row[k] for row in part]) for k in rows[0]} for part in (rows[:10], rows[-10:]))
    assert last["kl"] < 0.5 * first["kl"]
    assert last["loss"] < 0.5 * first["loss"]
    # Answers between 0 and 1 leave much of it.
    assert last["bce"] < 0.9 * first["bce"]
    assert all(r["loss"] == pytest.approx(r["bce"] + 0.2 * r["kl"], rel=1e-4) for r in rows)
    assert notes.steps == list(range(1, 81))
    assert notes.warnings == []
    t = torch.arange(RATE_HZ // 2) / RATE_HZ
    tones = torch.stack([0.3 * torch.sin(2 * torch.pi * hertz * t) for hertz in HERTZ])
    tones += 0.02 * torch.randn(tones.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert load_model(weights)(tones).argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_the_checkpoint_says_what_it_is(stream: Stream, tmp_path: Path) -> None:
    weights = train(tmp_path, stream, config(steps=3, seed=5))
    assert weights == tmp_path / MODEL_NAME
    told = read_metadata(weights)
    assert ModelSpec.from_dict(told["spec"]) == SMALL
    assert told["labels_hash"] == labels_hash()
    assert told["git_revision"] == git_revision()
    assert TrainConfig.from_dict(told["recipe"]["train"]) == config(steps=3, seed=5)
    assert ViewRecipe.from_dict(told["recipe"]["views"]) == RECIPE
    assert told["recipe"]["store"]["pack"] == stream.pack.hash
    assert told["recipe"]["store"]["teachers"] == stream.store.teachers
    with safe_open(weights, "pt") as f:
        assert f.metadata()["step"] == "3"
    assert load_model(weights).spec == SMALL
    state = torch.load(tmp_path / STATE_NAME, weights_only=True)
    assert state["step"] == 3
    assert set(load_file(weights)) == set(state["model"])


def test_what_is_saved_are_the_averaged_weights(stream: Stream, tmp_path: Path) -> None:
    for name, ema in (("raw", 0.0), ("averaged", 0.9)):
        train(tmp_path / name, stream, config(steps=12, ema=ema))
    raw, averaged = (load_file(tmp_path / name / MODEL_NAME) for name in ("raw", "averaged"))
    states = [torch.load(tmp_path / name / STATE_NAME, weights_only=True) for name in ("raw", "averaged")]
    key = "blocks.0.attn.qkv.weight"
    for state in states:  # what learns does not depend on what is averaged
        assert torch.equal(state["model"][key], raw[key])
    assert torch.equal(raw[key], states[0]["model"][key])
    assert torch.equal(averaged[key], states[1]["averaged"][f"module.{key}"])
    assert not torch.allclose(averaged[key], raw[key], atol=1e-5)


def test_the_average_is_that_of_the_formula() -> None:
    values = [1.0, 3.0, -2.0, 5.0, 4.0]
    update, averaged, expected = warm_ema(0.5), [torch.tensor([values[0]])], values[0]
    for n, value in enumerate(values[1:], start=1):
        update(averaged, [torch.tensor([value])], torch.tensor(n))
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert averaged[0].item() == pytest.approx(expected, rel=1e-6)
    counts = [torch.tensor(3)]
    update(counts, [torch.tensor(7)], torch.tensor(2))
    assert counts[0].item() == 7


def test_steps_are_those_of_all_epochs_unless_told(stream: Stream, tmp_path: Path) -> None:
    notes = Notes()
    train(tmp_path, stream, config(), reporter=notes)
    assert notes.steps[-1] == 3 * 24 // 4


def test_asked_again_a_finished_run_is_left_alone(stream: Stream, tmp_path: Path) -> None:
    train(tmp_path, stream, config(steps=3), reporter=Notes())
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    notes = Notes()
    assert train(tmp_path, stream, config(steps=3), reporter=notes) == tmp_path / MODEL_NAME
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert notes.steps == []
    weights = (tmp_path / MODEL_NAME).read_bytes()
    (tmp_path / MODEL_NAME).unlink()  # it is in the state as well
    train(tmp_path, stream, config(steps=3))
    assert (tmp_path / MODEL_NAME).read_bytes() == weights


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_optimizer_and_precision_learns_and_goes_on(
    stream: Stream, tmp_path: Path, optimizer: str, precision: str
) -> None:
    chosen = config(steps=24, optimizer=optimizer, precision=precision)
    train(tmp_path / "whole", stream, chosen, reporter=Notes())
    losses = [row["loss"] for row in read_log(tmp_path / "whole")]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    stop_at(13, tmp_path / "parts", stream, chosen)
    train(tmp_path / "parts", stream, chosen, reporter=Notes())
    assert same_files(tmp_path / "parts" / MODEL_NAME, tmp_path / "whole" / MODEL_NAME)


# Stopping and going on.


def stop_at(step: int, run: Path, stream: Stream, chosen: TrainConfig, number: int = signal.SIGINT) -> None:
    """Train, and press Ctrl-C after a step."""

    def press(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=f"stopped at step {step} of") as e:
        train(run, stream, chosen, reporter=Notes(press))
    assert e.value.exit_code == 130
    assert torch.load(run / STATE_NAME, weights_only=True)["step"] == step


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stopped_run_goes_on_exactly(stream: Stream, tmp_path: Path, workers: int) -> None:
    chosen = config(steps=20, workers=workers)
    train(tmp_path / "whole", stream, chosen, reporter=Notes())
    stop_at(7, tmp_path / "parts", stream, chosen)
    assert [row["step"] for row in read_log(tmp_path / "parts")] == list(range(1, 8))
    stop_at(13, tmp_path / "parts", stream, chosen, signal.SIGTERM)
    train(tmp_path / "parts", stream, chosen, reporter=Notes())
    assert learnt(tmp_path / "parts") == learnt(tmp_path / "whole")
    assert len(learnt(tmp_path / "whole")) == 20
    assert same_files(tmp_path / "parts" / MODEL_NAME, tmp_path / "whole" / MODEL_NAME)


def test_clean_answers_go_on_exactly_too(stream: Stream, tmp_path: Path) -> None:
    clean = make_store(tmp_path / "store", stream.pack, clean=True)
    views = Stream(stream.pack, clean, ViewRecipe(windows=((5, 0.3),)), 4, RATE_HZ)
    train(tmp_path / "whole", views, config(steps=8), reporter=Notes())
    stop_at(3, tmp_path / "parts", views, config(steps=8))
    train(tmp_path / "parts", views, config(steps=8), reporter=Notes())
    assert learnt(tmp_path / "parts") == learnt(tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once_and_the_old_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_politely() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGINT)
        assert stop == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_outside_the_main_thread_works(stream: Stream, tmp_path: Path) -> None:
    done: list[Path] = []
    thread = threading.Thread(target=lambda: done.append(train(tmp_path, stream, config(steps=2))))
    thread.start()
    thread.join()
    assert done == [tmp_path / MODEL_NAME]


def test_a_checkpoint_comes_every_so_many_minutes(
    stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(train_module, "save_state", lambda path, state: saved.append(state["step"]))
    clock = iter(range(0, 10_000, 20))  # 20 s pass between two looks at it
    monkeypatch.setattr(train_module.time, "monotonic", lambda: float(next(clock)))
    train(tmp_path, stream, config(steps=10, checkpoint_minutes=1.0))
    assert saved == [4, 8, 10]


@pytest.mark.parametrize("between", ["before the weights", "between weights and state"])
def test_a_run_killed_while_saving_goes_on_exactly(
    stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    chosen = config(steps=8, checkpoint_minutes=0.0)
    train(tmp_path / "whole", stream, chosen, reporter=Notes())

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        if json.loads((tmp_path / "parts" / "step").read_text()) == 5:
            raise Killed

    name = "save_model" if between == "before the weights" else "save_state"
    real: Callable[..., None] = getattr(train_module, name)

    def save(*arguments: Any) -> None:
        die()
        real(*arguments)

    (tmp_path / "parts").mkdir()
    notes = Notes(lambda step: (tmp_path / "parts" / "step").write_text(str(step)) and None)
    monkeypatch.setattr(train_module, name, save)
    with pytest.raises(Killed):
        train(tmp_path / "parts", stream, chosen, reporter=notes)
    assert torch.load(tmp_path / "parts" / STATE_NAME, weights_only=True)["step"] == 4
    monkeypatch.setattr(train_module, name, real)
    train(tmp_path / "parts", stream, chosen, reporter=Notes())
    assert learnt(tmp_path / "parts") == learnt(tmp_path / "whole")
    assert same_files(tmp_path / "parts" / MODEL_NAME, tmp_path / "whole" / MODEL_NAME)


@pytest.fixture(scope="module")
def whole(stream: Stream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command line, from its start to its end, saving after each step."""
    run = tmp_path_factory.mktemp("whole")
    done = run_command(*training(stream, run))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / MODEL_NAME)
    return run


def training(stream: Stream, run: Path) -> list[object]:
    flags = {**QUICK, "steps": 60, "workers": 1, "checkpoint_minutes": 0}
    options = itertools_chain((f"--{k.replace('_', '-')}", v) for k, v in flags.items())
    return ["train", "--pack", stream.pack.location, "--store", stream.store.path, "--out", run, "--resume", *options]


def itertools_chain(pairs: Iterator[tuple[str, Any]]) -> list[object]:
    return [part for pair in pairs for part in pair]


def wait_for_steps(run: Path, n: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120.0
    while not (run / LOG_NAME).exists() or (run / LOG_NAME).read_text().count("\n") <= n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_was_stopped_goes_on_exactly(
    stream: Stream, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Signals go to the whole process group, as a terminal sends Ctrl-C: to the workers too."""
    process = subprocess.Popen(
        command(*training(stream, tmp_path)), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
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
    done = run_command(*training(stream, tmp_path))
    assert done.returncode == 0, done.stderr
    assert learnt(tmp_path) == learnt(whole)
    assert same_files(tmp_path / MODEL_NAME, whole / MODEL_NAME)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


# Several processes.


def test_two_processes_train_one_model(stream: Stream, tmp_path: Path) -> None:
    flags = ["--steps", 12, "--batch", 8, "--workers", 1, "--log-every", 1, "--precision", "fp32", "--lr", 3e-3]
    wanted = ["train", "--pack", stream.pack.location, "--store", stream.store.path, "--out", tmp_path, *flags]
    done = run_command(*wanted, torchrun=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / MODEL_NAME)]
    assert [row["step"] for row in read_log(tmp_path)] == list(range(1, 13))
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == [
        LOG_NAME, MODEL_NAME, STATE_NAME, "tensorboard",
    ]  # fmt: skip
    assert load_model(tmp_path).spec == SMALL
    with pytest.raises(InputError, match="is a run of another processes"):
        train(tmp_path, stream, config(steps=12, batch=8, workers=1, ema=TrainConfig().ema))


# TODO-MORE
