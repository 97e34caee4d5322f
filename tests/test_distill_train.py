"""Training: the loss falls, the checkpoint says what it is, the plateau is warned of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_run import (
    HERTZ,
    RATE_HZ,
    RECIPE,
    SMALL,
    Notes,
    config,
    make_store,
    make_stream,
    small_student,
    stop_at,
)
from torch import nn

from ced_edge.labels import labels_hash
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import git_revision, load_model, read_metadata
from ced_edge.spec import ModelSpec
from distill.teaching.views import ViewRecipe
from distill.training.batches import TrainingData
from distill.training.config import TrainConfig
from distill.training.log import TrainLog, read_log
from distill.training.loop import MODEL_NAME, STATE_NAME
from distill.training.optimizers import make_optimizers, schedule, warm_ema
from distill.training.train import new_student, time_offset, train


@pytest.fixture(autouse=True)
def _small_student() -> Iterator[None]:
    with small_student():
        yield


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return make_stream(tmp_path_factory.mktemp("data"))


def same_files(a: Path, b: Path) -> bool:
    return a.read_bytes() == b.read_bytes()


def test_the_loss_falls_and_the_student_separates_the_tones(
    stream: TrainingData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = ViewRecipe(windows=((5, 0.4),), mix=(1.0,))
    views = TrainingData(stream.pack, make_store(tmp_path / "store", stream.pack, recipe), recipe, 8, RATE_HZ)
    weights = train(tmp_path, views, config(steps=80, batch=8, lr=1e-2))
    rows = read_log(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 81))
    first, last = ({k: np.mean([row[k] for row in part]) for k in rows[0]} for part in (rows[:10], rows[-10:]))
    assert last["kl"] < 0.5 * first["kl"]
    assert last["loss"] < 0.5 * first["loss"]
    # Answers between 0 and 1 leave much of it.
    assert last["bce"] < 0.9 * first["bce"]
    assert all(r["loss"] == pytest.approx(r["bce"] + 0.2 * r["kl"], rel=1e-4) for r in rows)
    assert caplog.messages == []
    t = torch.arange(RATE_HZ // 2) / RATE_HZ
    tones = torch.stack([0.3 * torch.sin(2 * torch.pi * hertz * t) for hertz in HERTZ])
    tones += 0.02 * torch.randn(tones.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert load_model(weights)(tones).argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_the_checkpoint_describes_itself(stream: TrainingData, tmp_path: Path) -> None:
    weights = train(tmp_path, stream, config(steps=3, seed=5))
    assert weights == tmp_path / MODEL_NAME
    metadata = read_metadata(weights)
    assert ModelSpec.from_dict(metadata["spec"]) == SMALL
    assert metadata["labels_hash"] == labels_hash()
    assert metadata["git_revision"] == git_revision()
    assert TrainConfig.from_dict(metadata["recipe"]["train"]) == config(steps=3, seed=5)
    assert ViewRecipe.from_dict(metadata["recipe"]["views"]) == RECIPE
    assert metadata["recipe"]["store"]["pack"] == stream.pack.hash
    assert metadata["recipe"]["store"]["teachers"] == stream.store.teachers
    with safe_open(weights, "pt") as f:
        assert f.metadata()["step"] == "3"
    assert load_model(weights).spec == SMALL
    state = torch.load(tmp_path / STATE_NAME, weights_only=True)
    assert state["step"] == 3
    assert set(load_file(weights)) == set(state["model"])


def test_what_is_saved_are_the_averaged_weights(stream: TrainingData, tmp_path: Path) -> None:
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


def test_steps_are_those_of_all_epochs_unless_given(stream: TrainingData, tmp_path: Path) -> None:
    notes = Notes()
    train(tmp_path, stream, config(), reporter=notes)
    assert notes.steps[-1] == 3 * 24 // 4


def test_a_reporter_gets_every_step_and_the_log_some(stream: TrainingData, tmp_path: Path) -> None:
    notes = Notes()
    train(tmp_path, stream, config(steps=12, log_every=5), reporter=notes)
    assert notes.steps == list(range(1, 13))
    assert [text.startswith("loss ") for text in notes.texts] == [False] * 4 + [True] * 8
    assert [row["step"] for row in read_log(tmp_path)] == [5, 10, 12]


def test_a_finished_run_is_left_alone(stream: TrainingData, tmp_path: Path) -> None:
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
    stream: TrainingData, tmp_path: Path, optimizer: str, precision: str
) -> None:
    chosen = config(steps=24, optimizer=optimizer, precision=precision)
    train(tmp_path / "whole", stream, chosen, reporter=Notes())
    losses = [row["loss"] for row in read_log(tmp_path / "whole")]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    stop_at(13, tmp_path / "parts", stream, chosen)
    train(tmp_path / "parts", stream, chosen, reporter=Notes())
    assert same_files(tmp_path / "parts" / MODEL_NAME, tmp_path / "whole" / MODEL_NAME)


# The monitor of the plateau.


def test_a_student_that_predicts_the_same_for_every_clip_is_reported(
    stream: TrainingData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, stream, config(steps=10, lr=1e-9))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("step 3: predictions are nearly the same for every clip (spread 0.")
    assert "raise --kl or start with --init" in caplog.messages[0]


def test_no_warning_at_the_start_nor_of_a_student_that_separates_clips(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warned(spreads: list[float]) -> list[str]:
        caplog.clear()
        with TrainLog(tmp_path, 0, len(spreads)) as log:
            for step, value in enumerate(spreads, start=1):
                numbers = dict.fromkeys(("loss", "bce", "kl", "grad"), 0.5) | {"spread": value, "teacher_spread": 0.3}
                log.write(step, {k: torch.tensor(v) for k, v in numbers.items()}, 1e-3, 4)
        return [message[:7] for message in caplog.messages]

    assert warned([0.001] * 2 + [0.031] * 8) == []
    assert warned([0.001] * 10) == ["step 3:"]
    assert warned([0.2] * 8 + [0.001] * 2) == ["step 9:"]


# The parts.


def test_the_head_starts_at_the_mean_answer_and_the_blocks_at_nothing(stream: TrainingData) -> None:
    model = new_student(stream, config())
    dense = [stream.store.read(0, s.name, s.clips).dense("tail")[0] for s in stream.pack.shards]
    head = model.outputlayer[1]
    assert isinstance(head, nn.Linear)
    torch.testing.assert_close(head.bias.sigmoid(), torch.from_numpy(np.concatenate(dense).mean(axis=0)))
    x = torch.randn(2, 5, SMALL.width)
    torch.testing.assert_close(model.blocks[0](x), x)
    assert torch.equal(new_student(stream, config(prior_bias=False)).outputlayer[1].bias, torch.zeros(527))


def test_each_weight_is_in_one_group_and_only_matrices_decay() -> None:
    model = CED(SMALL)
    names = {id(p): name for name, p in model.named_parameters()}
    for optimizer in ("adamw", "muon"):
        groups = [g for o in make_optimizers(model, config(optimizer=optimizer)) for g in o.param_groups]
        found = [names[id(p)] for g in groups for p in g["params"]]
        assert sorted(found) == sorted(names.values())
        decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
        assert decayed == {n for n in names.values() if n.endswith("weight") and "norm" not in n and "_bn" not in n} - {
            "outputlayer.0.weight"
        }


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.0, abs=1e-3)
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert schedule(0, 1, 0.0) == 1.0


def test_short_windows_visit_the_whole_time_embedding_and_long_ones_fit() -> None:
    def offsets(seconds: float, seed: int = 0) -> list[int]:
        return [time_offset(SMALL, round(seconds * RATE_HZ), step, seed) for step in range(400)]

    patches = 201 // 16  # 2 s are 201 frames
    assert sorted(set(offsets(2.0))) == list(range(63 - patches + 1))
    assert set(offsets(10.0)) == {0, 1}
    assert set(offsets(10.12)) == {0}
    assert offsets(2.0) == offsets(2.0)
    assert offsets(2.0, seed=1) != offsets(2.0)


@pytest.mark.parametrize("random_offset", [True, False])
def test_windows_can_stay_at_the_start_of_the_embedding(
    stream: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_offset: bool
) -> None:
    offsets = []
    forward = CED.forward

    def watched(self: CED, wave: torch.Tensor, time_offset: int = 0, kept: None = None) -> torch.Tensor:
        offsets.append(time_offset)
        return forward(self, wave, time_offset, kept)

    monkeypatch.setattr(CED, "forward", watched)
    train(tmp_path, stream, config(steps=6, random_offset=random_offset))
    assert len(offsets) == 6
    assert (set(offsets) != {0}) == random_offset
