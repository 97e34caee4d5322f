"""Balanced sampling: weights counted by hand, how often each clip comes, and its views of other epochs."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import QUICK, RATE_HZ, RECIPE, make_pack, make_store, small_student

from distill.packing.shards import Pack, clip_rms, read_shard
from distill.pipeline import run_train
from distill.teaching.store import Store, TopK
from distill.teaching.views import ViewRecipe, draw, render
from distill.training import batches as dataset
from distill.training.balance import clip_weights, times
from distill.training.batches import TrainingData, loader
from distill.training.config import TrainConfig


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """24 clips in four shards. Two in three hold one class, and every sixth a rare one."""
    folder = tmp_path_factory.mktemp("balance")
    packed = make_pack(folder)
    store = make_store(folder / "store", packed, ViewRecipe(windows=((3, 0.4),)))
    for shard, epoch in itertools.product(packed.shards, store.epochs):
        probabilities = np.full((shard.clips, 527), 1e-4, np.float32)
        probabilities[:5, 7], probabilities[0, 8], probabilities[5, 9] = 0.8, 0.31, 0.29
        store.write(epoch, shard.name, TopK.top_k(probabilities, 5))
    return TrainingData(packed, store, store.recipe, 4, RATE_HZ)


def test_a_weight_follows_from_the_rarest_class(stream: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 7 is in 20 clips, class 8 in 4 of them, and 4 clips hold no class."""
    monkeypatch.setattr("distill.training.balance.FEWEST", 1)
    for power in (0.0, 0.5, 1.0):
        expected = np.array([4.0, 20.0, 20.0, 20.0, 20.0, 4.0]) ** -power
        for weights in clip_weights(stream.pack, stream.store, power):
            np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-12)


@pytest.mark.parametrize(("epochs", "held"), [(1, 0), (3, 1)])
def test_two_views_say_what_is_in_a_clip(stream: TrainingData, tmp_path: Path, epochs: int, held: int) -> None:
    """Clip 0 has a class in its first view alone, clip 1 in all others. Of a store with one epoch, one view decides."""
    store = make_store(tmp_path / "store", stream.pack, ViewRecipe(windows=((epochs, 0.4),)))
    for shard, epoch in itertools.product(stream.pack.shards, store.epochs):
        probabilities = np.full((shard.clips, 527), 1e-4, np.float32)
        probabilities[min(epoch, 1), 7] = 0.9
        store.write(epoch, shard.name, TopK.top_k(probabilities, 5))
    for weights in clip_weights(stream.pack, store, 1.0):
        # Four clips have the class, which counts as FEWEST, 10; the other 20 have none.
        np.testing.assert_allclose(weights / weights[5], np.where(np.arange(6) == held, 2.0, 1.0))


def test_a_class_in_very_few_clips_does_not_fill_the_pass(stream: TrainingData) -> None:
    weights = np.concatenate(clip_weights(stream.pack, stream.store, 1.0))
    assert weights.max() / weights.min() == pytest.approx(20 / 10)


@given(st.lists(st.lists(st.floats(0.05, 8.0), min_size=1, max_size=9), min_size=1, max_size=6), st.floats(0, 0.999))
def test_a_clip_comes_as_often_as_its_weight_says(drawn: list[list[float]], place: float) -> None:
    mean = sum(map(sum, drawn)) / sum(map(len, drawn))
    weights = [np.array(part) / mean for part in drawn]
    order = np.arange(len(weights))[::-1]
    counts = times(weights, order, place)
    assert [len(part) for part in counts] == [len(weights[i]) for i in order]
    assert sum(part.sum() for part in counts) == sum(map(len, drawn))
    for i, part in zip(order, counts, strict=True):
        assert (np.abs(part - weights[i]) < 1 + 1e-6).all()


def test_over_many_passes_the_share_is_the_weight(stream: TrainingData) -> None:
    weights = tuple(np.array([3.0, 0.6, 0.6, 0.6, 0.6, 0.6]) for _ in stream.pack.shards)
    balanced = dataclasses.replace(stream, weights=weights)
    passes = [dataset._plan(balanced, k) for k in range(200)]
    assert {len(rows) for rows in passes} == {24}
    found = collections.Counter((shard, clip) for rows in passes for shard, clip, _ in rows.tolist())
    for (_, clip), n in found.items():
        assert n / 200 == pytest.approx(3.0 if clip == 0 else 0.6, abs=0.15)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_clip_that_comes_again_has_its_view_of_an_earlier_epoch(stream: TrainingData, workers: int) -> None:
    """Views and predictions are drawn and read here by hand; a run that starts later gets the same batches."""
    weights = tuple(np.array([3.5, 0.5, 0.5, 0.5, 0.5, 0.5]) for _ in stream.pack.shards)
    balanced = dataclasses.replace(stream, weights=weights)
    batches = list(itertools.islice(loader(balanced, workers=workers), 18))
    for number, again in enumerate(itertools.islice(loader(balanced, 7, workers), 11), 7):
        assert torch.equal(again.wave, batches[number].wave)
        assert torch.equal(again.target, batches[number].target)
    if workers:
        return
    epochs = set()
    for number, batch in enumerate(batches):
        turn_of_pass, i = divmod(number, 6)
        for row, (shard, clip, turn) in enumerate(dataset._plan(balanced, turn_of_pass)[4 * i : 4 * i + 4].tolist()):
            epoch = (turn_of_pass - turn) % (turn_of_pass + 1)
            epochs.add((turn_of_pass, epoch))
            assert_view(stream.pack, stream.store, shard, clip, epoch, batch.wave[row], batch.target[row])
    assert epochs == {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}


def assert_view(
    packed: Pack, store: Store, shard: int, clip: int, epoch: int, wave: torch.Tensor, target: torch.Tensor
) -> None:
    clips = read_shard(packed, packed.shards[shard])
    view = draw(store.recipe, epoch, clip, [c.id for c in clips])
    expected = render(view, [c.wave for c in clips], [clip_rms(c.wave) for c in clips], RATE_HZ)
    np.testing.assert_array_equal(wave.numpy(), expected)
    dense, _ = store.read(epoch, packed.shards[shard].name, packed.shards[shard].clips).dense()
    np.testing.assert_array_equal(target.numpy(), dense[clip])


def test_it_is_part_of_the_run_and_off_by_default(tmp_path: Path) -> None:
    packed = make_pack(tmp_path)
    store = make_store(tmp_path / "store", packed, RECIPE)
    with small_student():
        for name, fields in (("plain", {}), ("off", {"balance": 0.0}), ("on", {"balance": 1.0})):
            run_train(tmp_path / name, packed, store, TrainConfig(**(QUICK | {"steps": 6} | fields)))
    plain, off, on = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "off", "on"))
    assert plain == off
    assert b"balance" not in plain
    assert b"balance" in on
