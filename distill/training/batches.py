"""Batches of views and stored answers: an endless stream, each batch a pure function of its number."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType
from typing import NamedTuple

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ced_edge.arrays import Bools, Float32
from ced_edge.errors import CedEdgeError, InputError
from distill.packing.shards import LoadedShard, Pack, ShardReader
from distill.teaching.store import CLEAN_EPOCH, Store
from distill.teaching.views import ViewRecipe, draw, render


class Batch(NamedTuple):
    """B views of equal length and what the ensemble said of each."""

    wave: Tensor
    """(B, samples) float32 in [-1, 1] at the student's rate."""
    target: Tensor
    """(B, 527) probabilities."""
    kept: Tensor
    """(B, 527) bool: the classes whose probability was stored; the others are filled in by rule."""


@dataclass(frozen=True)
class TrainingData:
    """What the batches of one process are made of."""

    pack: Pack
    store: Store
    recipe: ViewRecipe
    """The views to draw: the store's own, or any for a store of answers about clean clips."""
    batch: int
    """Views per batch."""
    rate_hz: int
    """The student's sample rate."""
    repeats: int = 1
    """How often each stored epoch is heard before the next."""
    fill: str = "tail"
    """Rule for the classes outside the top K, see `TopK.dense`."""
    rank: int = 0
    world: int = 1

    def epoch(self, turn: int) -> int:
        """The view epoch of pass number `turn` over the clips; after the last one it starts again."""
        return (turn // self.repeats) % self.recipe.epochs


def batches_per_pass(pack: Pack, batch: int, readers: int) -> int:
    """How many batches each of `readers` readers has in one pass over the clips: the same number for all of them.

    Raises InputError when that would be none.
    """
    # The one place that decides this. The readers and the planned number of steps must agree, or readers would go on
    # to the next pass, and to its window length, at different steps.
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

    def __init__(self, stream: TrainingData, first: int = 0) -> None:
        self.stream, self.first = stream, first
        self._shards = ShardReader(stream.pack)
        self._stored: tuple[str, int, Float32, Bools] | None = None

    def __iter__(self) -> Iterator[Batch]:
        stream, first = self.stream, self.first
        info = get_worker_info()
        if info is not None:
            torch.set_num_threads(1)
            # The loader takes one batch from each worker in turn and starts with worker 0. For a run that starts at
            # batch `first` to continue an earlier one, worker 0 must take over the reader whose turn that batch is.
            W, w = info.num_workers, (info.id + self.first) % info.num_workers
            stream = replace(stream, rank=stream.rank * W + w, world=stream.world * W)
            first = (self.first - w + W - 1) // W  # the reader's own batch k is number W * k + w of this process
        per_pass = batches_per_pass(stream.pack, stream.batch, stream.world)
        turn, rows = -1, np.empty((0, 2), np.int64)
        for k in itertools.count(first):
            if k // per_pass != turn:
                turn = k // per_pass
                rows = _plan(stream, turn)
            i = k % per_pass * stream.batch
            chosen = rows[i : i + stream.batch]
            views = [self._view(stream, int(shard), int(clip), stream.epoch(turn)) for shard, clip in chosen]
            wave, target, kept = (torch.from_numpy(np.stack(column)) for column in zip(*views, strict=True))
            yield Batch(wave, target, kept)

    def _view(self, stream: TrainingData, shard: int, clip: int, epoch: int) -> tuple[Float32, Float32, Bools]:
        now = self._shards.load(stream.pack.shards[shard])
        target, kept = self._targets(stream, now, epoch)
        view = draw(stream.recipe, epoch, clip, now.ids)
        wave = render(view, now.waves, now.rms, stream.pack.rate_hz)
        if stream.pack.rate_hz != stream.rate_hz:
            wave = soxr.resample(wave, stream.pack.rate_hz, stream.rate_hz)
        if not stream.store.clean:
            return wave, target[clip], kept[clip]
        # Answers about clean clips: a mix is taken to hold what each of its clips holds.
        heard = [source.clip for source in view.sources]
        return wave, target[heard].max(axis=0), np.asarray(kept[heard].any(axis=0))

    def _targets(self, stream: TrainingData, now: LoadedShard, epoch: int) -> tuple[Float32, Bools]:
        """The stored predictions for all clips of a shard in an epoch, (clips, 527), and which classes were kept."""
        shard = now.shard
        if self._stored is None or self._stored[:2] != (shard.name, epoch):
            stored = CLEAN_EPOCH if stream.store.clean else epoch
            top_k = stream.store.read(stored, shard.name, shard.clips)
            self._stored = (shard.name, epoch, *top_k.dense(stream.fill))
        return self._stored[2:]


class _Reported(IterableDataset["Batch | CedEdgeError"]):
    """Errors as items: the loader would make a page of text of one that is raised in a worker."""

    def __init__(self, views: Batches) -> None:
        self.views = views

    def __iter__(self) -> Iterator[Batch | CedEdgeError]:
        try:
            yield from self.views
        except CedEdgeError as e:
            yield e


def loader(
    stream: TrainingData, first: int = 0, workers: int = 1, views: type[Batches] = Batches, device: str = "cpu"
) -> Generator[Batch, None, None]:
    """Batches from number `first` on, rendered ahead of the training step by `workers` processes (0: in this one).

    On the `device` "cpu" they take what the training leaves of the cores. Closing it ends them. Raises InputError when
    the pack is too small for the batch or the number of readers, and CedEdgeError when one of the processes dies.
    """
    batches_per_pass(stream.pack, stream.batch, stream.world * max(1, workers))  # raises before a process is started
    with warnings.catch_warnings():
        # torch counts the cores by OMP_NUM_THREADS, which torchrun sets to 1.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        data: DataLoader[Batch | CedEdgeError] = DataLoader(
            _Reported(views(stream, first)),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=8 if workers else None,
            worker_init_fn=partial(_start_process, device),
        )
        return _raised(iter(data))


def _raised(items: Iterator[Batch | CedEdgeError]) -> Generator[Batch, None, None]:
    with _Deaths() as deaths:
        try:
            while not isinstance(item := deaths.next(items), CedEdgeError):
                yield item
            raise item
        finally:
            del items  # which ends the processes


class _Deaths:
    """torch raises wherever this process is when one that renders dies, be it amid saving: keep that to `next`."""

    def __enter__(self) -> _Deaths:
        self._listening = False
        self._handler = signal.getsignal(signal.SIGCHLD)
        self._replaced = callable(self._handler) and threading.current_thread() is threading.main_thread()
        if self._replaced:
            signal.signal(signal.SIGCHLD, self._on_death)
        return self

    def __exit__(self, *_: object) -> None:
        if self._replaced:
            signal.signal(signal.SIGCHLD, self._handler)

    def _on_death(self, number: int, frame: FrameType | None) -> None:
        if self._listening and callable(self._handler):
            self._handler(number, frame)

    def next(self, items: Iterator[Batch | CedEdgeError]) -> Batch | CedEdgeError:
        """The next item, or an error as one when a process has died."""
        try:
            self._listening = True
            if self._replaced:
                self._on_death(signal.SIGCHLD, None)  # of one that came before
            return next(items)
        except (RuntimeError, ConnectionError, EOFError) as e:
            # An error inside a process comes as "Caught ...".
            if str(e).startswith("Caught ") or (isinstance(e, RuntimeError) and "DataLoader worker" not in str(e)):
                raise
        finally:
            self._listening = False
        return CedEdgeError(
            "a process that renders views died, perhaps for want of memory (or of /dev/shm): try --workers 0; the last "
            "checkpoint is kept"
        )


def _start_process(device: str, _worker: int) -> None:
    if device == "cpu":
        # A training thread that has to share its core holds up all the others.
        os.nice(19)
    # A terminal's Ctrl-C and torchrun's termination go to the whole process group. They are for the parent alone,
    # which finishes its step and saves, and needs batches until then.
    os.setpgid(0, 0)


def _plan(stream: TrainingData, turn: int) -> NDArray[np.int64]:
    """The (shard, clip) pairs of one reader in one pass, in order: (batches of a pass * batch, 2)."""
    seed, shards = stream.recipe.seed, stream.pack.shards
    parts = []
    for shard in _permutation(f"shards|{seed}|{turn}", len(shards)):
        clips = _permutation(f"clips|{seed}|{turn}|{shards[shard].name}", shards[shard].clips)
        parts.append(np.stack([np.full_like(clips, shard), clips], axis=1))
    rows = stream.batch * batches_per_pass(stream.pack, stream.batch, stream.world)
    return np.concatenate(parts)[stream.rank * rows :][:rows]


def _permutation(key: str, n: int) -> NDArray[np.int64]:
    """A shuffle of range(n) drawn from `key` alone."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.argsort(np.random.Philox(key=np.frombuffer(digest, "<u8")).random_raw(n), kind="stable")
