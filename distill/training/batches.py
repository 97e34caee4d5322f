"""Batches of views and stored predictions, without end. A batch is a pure function of its number."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ced_edge.arrays import Bools, Float32, Float64
from ced_edge.errors import InputError
from distill.feed import feed
from distill.packing.shards import LoadedShard, Pack, ShardReader
from distill.teaching.store import CLEAN_EPOCH, Store
from distill.teaching.views import Uniform, ViewRecipe, draw, random_words, render
from distill.training.balance import times
from distill.training.disturb import Chances, disturb, draw_disturbance

AHEAD = 8
"""Batches that each process may have ready."""

RENDERER_NICENESS = 10
"""Of the processes that render views beside a training on the CPU. At 0, a training thread would have to share its
core with a renderer, and all its other threads would wait for it. At 19, the lowest priority, any other background work
of the machine would take the renderers' share, and the training would wait for batches."""


class Batch(NamedTuple):
    """B views of equal length and the ensemble's predictions for them."""

    wave: Tensor
    """(B, samples) float32 in [-1, 1] at the student's rate."""
    target: Tensor
    """(B, 527) probabilities."""
    kept: Tensor
    """(B, 527) bool: the classes whose probability was stored; the others are filled in by rule."""


@dataclass(frozen=True)
class TrainingData:
    """Where the batches of one rank come from."""

    pack: Pack
    store: Store
    recipe: ViewRecipe
    """The views to draw: the store's own, or any for a store of predictions for clean clips."""
    batch: int
    """Views per batch of one rank."""
    rate_hz: int
    """The student's sample rate."""
    repeats: int = 1
    """How many passes use each stored epoch before the next one."""
    fill: str = "tail"
    """Rule for the classes outside the top K, see `TopK.dense`."""
    rank: int = 0
    world: int = 1
    chances: Chances = field(default_factory=Chances)
    """Of disturbances that only the student gets."""
    weights: tuple[Float64, ...] = ()
    """How often to use each clip, see `balance.clip_weights`; empty: all clips once in a pass."""

    def epoch(self, pass_number: int, turn: int = 0) -> int:
        """The view epoch of a pass over the clips. After the last epoch the first one follows.

        A clip that comes again in the same pass, in its `turn` 1, 2 ..., has its view of an earlier epoch of the same
        length if there is one. Later epochs may not be taught yet.
        """
        epoch = (pass_number // self.repeats) % self.recipe.epochs
        seconds = self.recipe.seconds(epoch)
        same = [e for e in range(epoch + 1) if self.recipe.seconds(e) == seconds] if turn else [epoch]
        return same[-1 - turn % len(same)]


def batches_per_pass(pack: Pack, batch: int, readers: int) -> int:
    """How many batches each of `readers` readers has in one pass over the clips: the same number for all of them.

    Raises InputError when that would be none.
    """
    # Only this function decides it. The readers and the planned number of steps must agree: otherwise readers would
    # begin the next pass, with windows of another length, at different steps.
    per_reader = pack.clips // readers
    if per_reader < batch:
        fewer = "" if readers == 1 else ", or fewer --workers"
        raise InputError(
            f"a batch of {batch} is more than the {per_reader} clips of each reader ({pack.clips} clips, "
            f"{readers} readers): use a smaller --batch{fewer}"
        )
    return per_reader // batch


class Batches(IterableDataset[Batch]):
    """Batches in order, from number `first` on, without end. Batch number k is a pure function of k.

    A reader is one process that renders views: a worker of the loader, or the training process itself. In each pass
    over the clips, the shards come in a drawn order, and the clips of a shard in a drawn order of their own. This
    sequence is cut into one run of whole batches per reader, all of one length. So a reader reads each of its shards
    once per pass, all readers are in the same pass at the same step, and less than one batch per reader is left out.
    """

    def __init__(self, data: TrainingData, first: int = 0) -> None:
        self.data, self.first = data, first
        self._shards = ShardReader(data.pack)
        self._stored: tuple[str, dict[int, tuple[Float32, Bools]]] = ("", {})

    def __iter__(self) -> Iterator[Batch]:
        data, first = self.data, self.first
        info = get_worker_info()
        if info is not None:
            # The loader takes one batch from each worker in turn and starts with worker 0. For a run that starts at
            # batch `first` to continue an earlier one, worker 0 must take over the reader whose turn that batch is.
            W, w = info.num_workers, (info.id + self.first) % info.num_workers
            data = replace(data, rank=data.rank * W + w, world=data.world * W)
            first = (self.first - w + W - 1) // W  # the reader's own batch k is number W * k + w of this process
        per_pass = batches_per_pass(data.pack, data.batch, data.world)
        pass_number, rows = -1, np.empty((0, 3), np.int64)
        for k in itertools.count(first):
            if k // per_pass != pass_number:
                pass_number = k // per_pass
                rows, self._stored = _plan(data, pass_number), ("", {})
            i = k % per_pass * data.batch
            chosen = rows[i : i + data.batch]
            views = [self._view(data, shard, clip, turn, pass_number) for shard, clip, turn in chosen.tolist()]
            wave, target, kept = (torch.from_numpy(np.stack(column)) for column in zip(*views, strict=True))
            yield Batch(wave, target, kept)

    def _view(
        self, data: TrainingData, shard: int, clip: int, turn: int, pass_number: int
    ) -> tuple[Float32, Float32, Bools]:
        epoch = data.epoch(pass_number, turn)
        now = self._shards.load(data.pack.shards[shard])
        target, kept = self._targets(data, now, epoch)
        view = draw(data.recipe, epoch, clip, now.ids)
        wave = render(view, now.waves, now.rms, data.pack.rate_hz)
        if data.pack.rate_hz != data.rate_hz:
            wave = soxr.resample(wave, data.pack.rate_hz, data.rate_hz)
        if data.chances.any:
            name = f"{now.ids[clip]}|{turn}" if turn else now.ids[clip]
            disturbance = draw_disturbance(data.chances, data.recipe.seed, pass_number, name)
            wave = disturb(wave, disturbance, data.rate_hz)
        if not data.store.clean:
            return wave, target[clip], kept[clip]
        # Predictions for clean clips: we assume that a mix contains what each of its clips contains.
        parts = [source.clip for source in view.sources]
        return wave, target[parts].max(axis=0), np.asarray(kept[parts].any(axis=0))

    def _targets(self, data: TrainingData, now: LoadedShard, epoch: int) -> tuple[Float32, Bools]:
        """The stored predictions for all clips of a shard in an epoch, (clips, 527), and which classes were kept."""
        shard = now.shard
        if self._stored[0] != shard.name:
            self._stored = (shard.name, {})
        stored = CLEAN_EPOCH if data.store.clean else epoch
        if stored not in self._stored[1]:
            self._stored[1][stored] = data.store.read(stored, shard.name, shard.clips).dense(data.fill)
        return self._stored[1][stored]


def loader(
    data: TrainingData, first: int = 0, workers: int = 1, views: type[Batches] = Batches, device: str = "cpu"
) -> Generator[Batch, None, None]:
    """Batches from number `first` on, rendered by `workers` processes ahead of the training step (0: in this process).

    Closing the generator ends the processes. Raises InputError when the pack is too small for the batch or for the
    number of readers, and CedEdgeError when one of the processes dies.
    """
    batches_per_pass(data.pack, data.batch, data.world * max(1, workers))  # raises before a process is started
    mend, niceness = "try --workers 0; the last checkpoint is kept", RENDERER_NICENESS if device == "cpu" else 0
    return feed(views(data, first), workers, AHEAD, mend, pinned=device == "cuda", niceness=niceness)


def _plan(data: TrainingData, pass_number: int) -> NDArray[np.int64]:
    """The (shard, clip, turn) of each view of one reader in one pass, in order: (batches of a pass * batch, 3)."""
    seed, shards = data.recipe.seed, data.pack.shards
    rows = data.batch * batches_per_pass(data.pack, data.batch, data.world)
    first = data.rank * rows  # of this reader, in the sequence of all clips
    order = _permutation(f"shards|{seed}|{pass_number}", len(shards))
    counts: list[NDArray[np.int64]] = []
    if data.weights:
        counts = times(data.weights, order, Uniform(f"balance|{seed}|{pass_number}")())
    stops = np.cumsum([part.sum() for part in counts] or [shards[shard].clips for shard in order])
    # Only the shards with clips of this reader are drawn: with 2 M clips, all of them would take a second per reader.
    low, high = np.searchsorted(stops, [first, first + rows - 1], side="right")
    parts = []
    for i in range(low, high + 1):
        shard = shards[order[i]]
        often = counts[i] if counts else np.ones(shard.clips, np.int64)
        clips = np.repeat(np.arange(shard.clips), often)
        turns = np.arange(len(clips)) - np.repeat(np.cumsum(often) - often, often)
        part = np.stack([np.full_like(clips, order[i]), clips, turns], axis=1)
        parts.append(part[_permutation(f"clips|{seed}|{pass_number}|{shard.name}", len(part))])
    skipped = first - (stops[low - 1] if low else 0)
    return np.concatenate(parts)[skipped:][:rows]


def _permutation(key: str, n: int) -> NDArray[np.int64]:
    """A shuffle of range(n) drawn from `key` alone."""
    return np.argsort(random_words(key, n), kind="stable")
