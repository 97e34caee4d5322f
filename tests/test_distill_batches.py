"""Batches: a pure function of their number, every clip once in a pass, ranks apart, shards read in order."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soxr
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_run import RATE_HZ, RECIPE, make_pack, make_store

from ced_edge.errors import InputError
from distill.packing import shards as shard_reader
from distill.packing.shards import Pack, Shard, clip_rms, read_shard
from distill.teaching.store import CLEAN_EPOCH, Store
from distill.teaching.views import ViewRecipe, draw, render
from distill.training import batches as dataset
from distill.training.batches import Batch, Batches, TrainingData, batches_per_pass, loader
from distill.training.config import TrainConfig
from distill.training.train import total_steps


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


def rows_of(stream: TrainingData, turn: int) -> list[tuple[str, int]]:
    """(shard, clip) of each row of a pass, in order."""
    return [(stream.pack.shards[int(s)].name, int(c)) for s, c, _ in dataset._plan(stream, turn)]


def test_rows_are_the_views_of_the_clips_and_their_own_answers(stream: TrainingData) -> None:
    """The student's view is the teacher's: drawn and rendered here by hand, from the recipe alone."""
    per_pass = 6
    for number, batch in enumerate(take(stream, 3 * per_pass)):
        turn, i = divmod(number, per_pass)
        for row, (name, clip) in enumerate(rows_of(stream, turn)[4 * i : 4 * i + 4]):
            shard = next(s for s in stream.pack.shards if s.name == name)
            clips = read_shard(stream.pack, shard)
            view = draw(RECIPE, turn, clip, [c.id for c in clips])
            wave = render(view, [c.wave for c in clips], [clip_rms(c.wave) for c in clips], RATE_HZ)
            np.testing.assert_array_equal(batch.wave[row].numpy(), wave)
            dense, kept = stream.store.read(turn, name, shard.clips).dense("tail")
            np.testing.assert_array_equal(batch.target[row].numpy(), dense[clip])
            np.testing.assert_array_equal(batch.kept[row].numpy(), kept[clip])


def test_every_clip_once_in_a_pass_and_in_another_order_in_the_next(stream: TrainingData) -> None:
    passes = [rows_of(stream, turn) for turn in range(4)]
    everything = sorted((s.name, c) for s in stream.pack.shards for c in range(s.clips))
    assert all(sorted(rows) == everything for rows in passes)
    assert len({tuple(rows) for rows in passes}) == 4


class Rows(Batches):
    """Batches whose audio is silence of the right length, and whose target is (shard, clip, epoch)."""

    def _view(self, stream: TrainingData, shard: int, clip: int, _turn: int, turn: int) -> Any:
        epoch = stream.epoch(turn)
        samples = round(stream.recipe.seconds(epoch) * 10)
        return np.zeros(samples, np.float32), np.array([shard, clip, epoch], np.float32), np.zeros(1, bool)


class Worker(NamedTuple):
    """What torch passes to a process of its loader."""

    id: int
    num_workers: int


def in_turn(stream: TrainingData, workers: int, first: int, n: int) -> list[Batch]:
    """Batches `first` to `first + n` of one training process, as the loader takes them from its workers in turn."""
    if workers == 0:
        return list(itertools.islice(Rows(stream, first), n))
    queues = []
    for worker in range(workers):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataset, "get_worker_info", lambda worker=worker: Worker(worker, workers))
            queues.append(iter(list(itertools.islice(Rows(stream, first), -(-n // workers)))))
    return [next(queues[i % workers]) for i in range(n)]


@st.composite
def streams(draw_: st.DrawFn) -> tuple[list[TrainingData], int]:
    """Every training process's data, and how many workers each process has."""
    sizes = draw_(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    world, workers = draw_(st.integers(1, 4)), draw_(st.integers(0, 3))
    readers = world * max(1, workers)
    assume(sum(sizes) >= readers)
    batch = draw_(st.integers(1, sum(sizes) // readers))
    windows = tuple((epochs, 0.5 + i) for i, epochs in enumerate(draw_(st.lists(st.integers(1, 2), min_size=1))[:3]))
    recipe, repeats = ViewRecipe(seed=draw_(st.integers(0, 9)), windows=windows), draw_(st.integers(1, 2))
    no_store: Any = None  # a plan reads none
    one = TrainingData(shards_of(*sizes), no_store, recipe, batch, RATE_HZ, repeats)
    return [dataclasses.replace(one, rank=rank, world=world) for rank in range(world)], workers


@settings(max_examples=60)
@given(streams(), st.data())
def test_every_process_is_in_the_same_pass_at_the_same_step(
    processes: tuple[list[TrainingData], int], data: st.DataObject
) -> None:
    """The pass, and so the window length, follows from the number of the step, for any shards, ranks and workers."""
    ranks, workers = processes
    recipe, repeats, batch = ranks[0].recipe, ranks[0].repeats, ranks[0].batch
    steps = total_steps(ranks[0], TrainConfig(workers=workers, repeats=repeats))
    assume(steps <= 150)
    ahead = 2  # after the last planned step the first epoch comes again
    runs = [in_turn(stream, workers, 0, steps + ahead) for stream in ranks]
    per_epoch = steps // recipe.epochs
    clips = [(s, c) for s, shard in enumerate(ranks[0].pack.shards) for c in range(shard.clips)]
    for number, batches in enumerate(zip(*runs, strict=True)):
        epoch = number // per_epoch % recipe.epochs  # a formula of the number alone, and all epochs equally long
        for rows in batches:
            assert rows.wave.shape == (batch, round(10 * recipe.seconds(epoch)))
            assert rows.target[:, 2].tolist() == [epoch] * batch
    per_pass = per_epoch // repeats
    for start in range(0, steps, per_pass):
        used = [(int(s), int(c)) for run in runs for b in run[start : start + per_pass] for s, c, _ in b.target]
        assert len(set(used)) == len(used)  # no clip twice in a pass
        assert set(used) <= set(clips)
        assert len(clips) - len(used) < batch * len(ranks) * max(1, workers)  # less than a batch per reader is left out
    first = data.draw(st.integers(0, steps))
    for stream, run in zip(ranks, runs, strict=True):
        assert_same(in_turn(stream, workers, first, steps + ahead - first), run[first:])


@settings(max_examples=30)
@given(streams())
def test_readers_share_few_shards(processes: tuple[list[TrainingData], int]) -> None:
    """Each reader reads a run of shards, each of them once; only the shards at the borders have two readers or more."""
    ranks, _ = processes
    names = [[name for name, _ in itertools.groupby(rows_of(stream, 3), key=lambda row: row[0])] for stream in ranks]
    assert all(len(set(n)) == len(n) for n in names)
    assert sum(map(len, names)) <= len(ranks[0].pack.shards) + len(ranks) - 1


def test_all_ranks_use_all_window_lengths_together(tmp_path: Path) -> None:
    """Three shards, two processes, and windows of two lengths: with whole shards each, the processes would differ."""
    packed = make_pack(tmp_path, n=18)
    one = TrainingData(packed, make_store(tmp_path / "store", packed), RECIPE, 3, RATE_HZ)
    lengths = []
    for rank in range(2):
        stream = dataclasses.replace(one, rank=rank, world=2)
        assert total_steps(stream, TrainConfig(workers=1)) == 9
        lengths.append([batch.wave.shape[1] / RATE_HZ for batch in take(stream, 9, workers=1)])
    assert lengths == [[0.4] * 6 + [0.6] * 3] * 2


def test_ranks_and_workers_are_alike_readers(stream: TrainingData) -> None:
    """Two workers of one process read what two processes of one reader read, in turn."""
    ranks = [take(dataclasses.replace(stream, rank=rank, world=2), 5) for rank in range(2)]
    both = list(itertools.chain(*zip(*ranks, strict=True)))
    assert_same(take(stream, 10, workers=2), both)


def test_epochs_come_in_order_each_repeats_times(stream: TrainingData) -> None:
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

    monkeypatch.setattr(shard_reader, "read_shard", read)
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
        rows = rows_of(TrainingData(stream.pack, clean, recipe, 4, RATE_HZ), 0)[4 * i : 4 * i + 4]
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
    shards = [Shard(f"s{i}", n, 0.0, "") for i, n in enumerate(sizes)]
    return Pack("", RATE_HZ, shards, sum(sizes), 0.0, 0, "")


def test_too_few_clips_are_refused_before_anything_starts(stream: TrainingData) -> None:
    with pytest.raises(InputError, match=r"a batch of 25 is more than the 24 clips.*: use a smaller --batch$"):
        loader(dataclasses.replace(stream, batch=25), workers=0)
    with pytest.raises(InputError, match=r"a batch of 4 is more than the 3 clips of each reader.*or fewer --workers"):
        loader(dataclasses.replace(stream, world=2), workers=4)
    with pytest.raises(InputError, match=r"a batch of 13 is more than the 12 clips of each reader"):
        next(iter(Batches(dataclasses.replace(stream, batch=13, world=2))))
    with pytest.raises(InputError, match=r"a batch of 13 is more than the 12 clips"):
        total_steps(dataclasses.replace(stream, batch=13, world=2), TrainConfig())
    assert batches_per_pass(shards_of(9, 1, 1), 5, 2) == 1


class Niceness(Batches):
    """One batch, which holds the niceness of the process that made it."""

    def __iter__(self) -> Iterator[Batch]:
        yield Batch(torch.tensor(os.nice(0)), torch.zeros(1), torch.zeros(1, dtype=torch.bool))


@pytest.mark.parametrize(("device", "lower"), [("cpu", 10), ("cuda", 0)])
def test_renderers_run_after_training_but_before_background_work(stream: TrainingData, device: str, lower: int) -> None:
    """At the lowest priority, 19, they starved beside other busy processes of that priority."""
    batch = next(loader(stream, workers=1, views=Niceness, device=device))
    assert int(batch.wave) == min(19, os.nice(0) + lower)


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


@settings(max_examples=50)
@given(clips=st.lists(st.integers(1, 9), min_size=1, max_size=12), batch=st.integers(1, 4), world=st.integers(1, 5))
def test_a_reader_plans_its_part_of_all_clips(clips: list[int], batch: int, world: int) -> None:
    """Each reader draws only its own shards. Together they must be the beginning of one sequence over all shards."""
    shards = [Shard(f"shard-{i:06d}.tar", n, 1.0, "0" * 64) for i, n in enumerate(clips)]
    packed = Pack("nowhere", RATE_HZ, shards, sum(clips), 1.0, 0, "0" * 64)
    recipe = ViewRecipe()
    assume(packed.clips // world >= batch)

    def plan(batch: int, rank: int, world: int) -> list[list[int]]:
        store = Store(Path("nowhere"), recipe, [], 1, packed.hash)
        return dataset._plan(TrainingData(packed, store, recipe, batch, RATE_HZ, rank=rank, world=world), 3).tolist()

    whole = plan(1, 0, 1)
    assert sorted(whole) == [[shard, clip, 0] for shard, n in enumerate(clips) for clip in range(n)]
    parts = [row for rank in range(world) for row in plan(batch, rank, world)]
    assert parts == whole[: len(parts)]
    assert len(parts) == packed.clips // world // batch * batch * world
