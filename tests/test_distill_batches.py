"""Batches: a pure function of their number, every clip once in a pass, ranks apart, shards read in order."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import RATE_HZ, RECIPE, make_pack, make_store

from ced_edge.errors import InputError
from distill.packing.shards import Pack, Shard, read_shard
from distill.teaching.store import CLEAN_EPOCH, Store
from distill.teaching.views import ViewRecipe, clip_rms, draw, render
from distill.training import batches as dataset
from distill.training.batches import Batch, Batches, TrainingData, check_readers, loader


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """24 clips in shards of 6, 6, 6 and 6; batches of 4; three epochs, of 0.4 and 0.6 s."""
    folder = tmp_path_factory.mktemp("data")
    packed = make_pack(folder)
    return TrainingData(packed, make_store(folder / "store", packed), RECIPE, 4, RATE_HZ)


def take(stream: TrainingData, n: int, first: int = 0, workers: int = 0) -> list[Batch]:
    return list(itertools.islice(loader(stream, first, workers), n))


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_starting_at_a_batch_is_skipping_those_before(stream: TrainingData, workers: int) -> None:
    whole = take(stream, 23, workers=workers)  # of 6 batches a pass: more than all three epochs
    for first in (1, 6, 7, 20):
        assert_same(take(stream, 23 - first, first, workers), whole[first:])


def test_one_worker_gives_what_this_process_gives(stream: TrainingData) -> None:
    assert_same(take(stream, 8, workers=1), take(stream, 8, workers=0))


def test_what_a_batch_holds(stream: TrainingData) -> None:
    batch = take(stream, 1)[0]
    assert batch.wave.shape == (4, round(0.4 * RATE_HZ))
    assert batch.wave.dtype == batch.target.dtype == torch.float32
    assert batch.target.shape == batch.kept.shape == (4, 527)
    assert batch.kept.dtype == torch.bool
    assert batch.kept.sum(1).tolist() == [stream.store.k] * 4
    assert float(batch.wave.abs().max()) <= 1.0
    assert ((batch.target >= 0) & (batch.target <= 1)).all()


def heard(stream: TrainingData, turn: int) -> list[tuple[str, int]]:
    """(shard, clip) of each row of a pass, in order."""
    return [(stream.pack.shards[int(s)].name, int(c)) for s, c in dataset._plan(stream, turn)]


def test_rows_are_the_views_of_the_clips_and_their_own_answers(stream: TrainingData) -> None:
    """The student's view is the teacher's: drawn and rendered here by hand, from the recipe alone."""
    per_pass = 6
    for number, batch in enumerate(take(stream, 3 * per_pass)):
        turn, i = divmod(number, per_pass)
        for row, (name, clip) in enumerate(heard(stream, turn)[4 * i : 4 * i + 4]):
            shard = next(s for s in stream.pack.shards if s.name == name)
            clips = read_shard(stream.pack, shard)
            view = draw(RECIPE, turn, clip, [c.id for c in clips])
            wave = render(view, [c.wave for c in clips], [clip_rms(c.wave) for c in clips], RATE_HZ)
            np.testing.assert_array_equal(batch.wave[row].numpy(), wave)
            dense, kept = stream.store.read(turn, name, shard.clips).dense("tail")
            np.testing.assert_array_equal(batch.target[row].numpy(), dense[clip])
            np.testing.assert_array_equal(batch.kept[row].numpy(), kept[clip])


def test_every_clip_once_in_a_pass_and_in_another_order_in_the_next(stream: TrainingData) -> None:
    passes = [heard(stream, turn) for turn in range(4)]
    everything = sorted((s.name, c) for s in stream.pack.shards for c in range(s.clips))
    assert all(sorted(rows) == everything for rows in passes)
    assert len({tuple(rows) for rows in passes}) == 4


@settings(max_examples=30)
@given(st.data())
def test_a_pass_drops_less_than_a_batch_and_repeats_nothing(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    world = data.draw(st.integers(1, len(sizes)))
    batch = data.draw(st.integers(1, 5))
    shards = [Shard(f"s{i}", "", n, 0.0, "") for i, n in enumerate(sizes)]
    packed = Pack("", RATE_HZ, shards, sum(sizes), 0.0, 0, "")
    one = TrainingData(packed, None, RECIPE, batch, RATE_HZ)  # type: ignore[arg-type]
    ranks = [heard(dataclasses.replace(one, rank=rank, world=world), 3) for rank in range(world)]
    together = collections.Counter(row for rows in ranks for row in rows)
    assert together == collections.Counter((s.name, c) for s in shards for c in range(s.clips))
    # Ranks have whole shards, each of which is in one run of rows.
    names = [[name for name, _ in itertools.groupby(rows, key=lambda row: row[0])] for rows in ranks]
    assert collections.Counter(itertools.chain(*names)) == collections.Counter(s.name for s in shards)
    assert max(map(len, names)) - min(map(len, names)) <= 1


def test_ranks_and_workers_are_alike_readers(stream: TrainingData) -> None:
    """Two workers of one process hear what two processes of one reader hear, in turn."""
    ranks = [take(dataclasses.replace(stream, rank=rank, world=2), 5) for rank in range(2)]
    both = list(itertools.chain(*zip(*ranks, strict=True)))
    assert_same(take(stream, 10, workers=2), both)


def test_epochs_come_in_order_each_as_often_as_asked(stream: TrainingData) -> None:
    twice = dataclasses.replace(stream, repeats=2)
    assert [twice.epoch(turn) for turn in range(8)] == [0, 0, 1, 1, 2, 2, 0, 0]
    lengths = [batch.wave.shape[1] / RATE_HZ for batch in take(stream, 18)]
    assert lengths == [0.4] * 12 + [0.6] * 6


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are read from now on."""
    names: list[str] = []

    def read(pack: Pack, shard: Shard) -> Any:
        names.append(shard.name)
        return read_shard(pack, shard)

    monkeypatch.setattr(dataset, "read_shard", read)
    return names


def test_no_shard_is_opened_twice_in_a_pass(stream: TrainingData, opened: list[str]) -> None:
    take(dataclasses.replace(stream, batch=3), 8)  # the whole of one pass, batches reaching over shards
    assert sorted(opened) == [s.name for s in stream.pack.shards]
    opened.clear()
    take(dataclasses.replace(stream, batch=3), 4, first=4)
    assert len(opened) == 2  # those of the first half are not touched


def test_a_pack_of_one_shard_is_read_once(tmp_path: Path, opened: list[str]) -> None:
    packed = make_pack(tmp_path, n=8, clips_per_shard=8)
    store = make_store(tmp_path / "store", packed)
    batches = take(TrainingData(packed, store, RECIPE, 4, RATE_HZ), 6)
    assert len(opened) == 1
    assert [b.wave.shape[1] / RATE_HZ for b in batches] == [0.4] * 4 + [0.6] * 2
    assert not torch.equal(batches[0].target, batches[2].target)  # answers of the next epoch, though


@pytest.fixture(scope="module")
def clean(stream: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("clean"), stream.pack, clean=True)


def test_a_mix_of_clips_with_clean_answers_holds_what_each_of_them_holds(stream: TrainingData, clean: Store) -> None:
    recipe = ViewRecipe(windows=((1, 0.4),), mix=(0.0, 0.5, 0.5))
    mixes = 0
    for i, batch in enumerate(take(TrainingData(stream.pack, clean, recipe, 4, RATE_HZ), 6)):
        rows = heard(TrainingData(stream.pack, clean, recipe, 4, RATE_HZ), 0)[4 * i : 4 * i + 4]
        for row, (name, clip) in enumerate(rows):
            shard = next(s for s in stream.pack.shards if s.name == name)
            dense, kept = clean.read(CLEAN_EPOCH, name, shard.clips).dense("tail")
            ids = [c.id for c in read_shard(stream.pack, shard)]
            sources = [s.clip for s in draw(recipe, 0, clip, ids).sources]
            mixes += len(sources) > 1
            assert sources[0] == clip
            np.testing.assert_array_equal(batch.target[row], np.max([dense[s] for s in sources], axis=0))
            np.testing.assert_array_equal(batch.kept[row], np.any([kept[s] for s in sources], axis=0))
    assert mixes > 12


def test_any_views_can_be_drawn_for_clean_answers_and_all_epochs_hear_the_same(
    stream: TrainingData, clean: Store
) -> None:
    recipe = ViewRecipe(windows=((2, 0.3),), mix=(1.0,), seed=4)
    batches = take(TrainingData(stream.pack, clean, recipe, 24, RATE_HZ), 2)
    order = [np.lexsort(b.wave.numpy().T[:1]) for b in batches]
    assert not torch.equal(batches[0].wave[order[0]], batches[1].wave[order[1]])
    totals = [b.target.sum(0) for b in batches]
    torch.testing.assert_close(totals[0], totals[1])


def test_a_pack_of_another_rate_is_resampled(stream: TrainingData) -> None:
    half = dataclasses.replace(stream, rate_hz=8_000)
    low, high = take(half, 1)[0], take(stream, 1)[0]
    assert low.wave.shape == (4, round(0.4 * 8_000))
    np.testing.assert_array_equal(low.wave[0].numpy(), soxr.resample(high.wave[0].numpy(), RATE_HZ, 8_000))


def shards_of(*sizes: int) -> Pack:
    shards = [Shard(f"s{i}", f"/s{i}", n, 0.0, "") for i, n in enumerate(sizes)]
    return Pack("", RATE_HZ, shards, sum(sizes), 0.0, 0, "")


def test_too_few_shards_or_clips_are_refused_before_anything_starts(stream: TrainingData) -> None:
    with pytest.raises(InputError, match=r"4 shards cannot feed 5 readers: use fewer --workers"):
        loader(stream, workers=5)
    with pytest.raises(InputError, match=r"4 shards cannot feed 6 readers"):
        loader(dataclasses.replace(stream, world=3), workers=2)
    with pytest.raises(InputError, match=r"a batch of 25 is more than the 24 clips"):
        loader(dataclasses.replace(stream, batch=25), workers=0)
    with pytest.raises(InputError, match=r"a batch of 13 is more than the 12 clips of a reader"):
        next(iter(Batches(dataclasses.replace(stream, batch=13, world=2))))
    check_readers(shards_of(9, 1, 1), 10, 2)
    with pytest.raises(InputError, match="more than the 10"):
        check_readers(shards_of(9, 1, 1), 11, 2)


def test_a_reader_whose_shards_are_too_small_sits_a_pass_out(tmp_path: Path) -> None:
    packed = make_pack(tmp_path, n=13, clips_per_shard=6)  # 6, 6 and 1
    assert [s.clips for s in packed.shards] == [6, 6, 1]
    store = make_store(tmp_path / "store", packed)
    for rank in range(2):
        batches = take(TrainingData(packed, store, RECIPE, 6, RATE_HZ, rank=rank, world=2), 12)
        assert [len(b.wave) for b in batches] == [6] * 12


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_answer_is_one_line_from_any_process(tmp_path: Path, workers: int) -> None:
    packed = make_pack(tmp_path, n=12)
    store = make_store(tmp_path / "store", packed)
    store.file(0, packed.shards[1].name).unlink()
    with pytest.raises(InputError, match=r"has not finished this store") as e:
        take(TrainingData(packed, store, RECIPE, 6, RATE_HZ), 2, workers=workers)
    assert "\n" not in str(e.value)


def test_errors_that_nobody_foresaw_are_not_swallowed(stream: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Batches) -> Iterator[Batch]:
        raise ZeroDivisionError("by nought")
        yield

    monkeypatch.setattr(Batches, "__iter__", broken)
    with pytest.raises(ZeroDivisionError, match="by nought"):
        take(stream, 1)
