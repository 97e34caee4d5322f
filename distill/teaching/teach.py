"""Teach: the teachers predict every view of every shard once, and their predictions go into a store.

A view is drawn and rendered here as training will draw and render it again, so that teacher and student get the same
samples (consistent teaching, arXiv 2308.11957).
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ced_edge.arrays import Float32
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.spec import N_CLASSES
from distill.devices import local_device
from distill.packing.shards import INT16_SCALE, LoadedShard, Pack, Shard, ShardReader, read_shard
from distill.processes import in_order, pool_of, rank_and_world
from distill.teachers.ensemble import Ensemble
from distill.teachers.load import load_teachers
from distill.teachers.spec import TeacherSpec
from distill.teaching.store import CLEAN_EPOCH, Store, TopK
from distill.teaching.views import draw, render

Progress = Callable[[int], None]
Unit = tuple[Shard, int]
"""A shard and an epoch: what is predicted, and stored, as a whole."""


@dataclass(frozen=True)
class Job:
    """What a teaching process needs to know. It is sent to each process once."""

    pack: Pack
    store: Store
    teachers: tuple[TeacherSpec, ...]
    device: str = "cpu"
    """Under torchrun `cuda` is the GPU of the rank."""

    @property
    def batch_seconds(self) -> float:
        """Seconds of audio per call of the ensemble. A CPU is fastest with what stays near its caches."""
        return 40.0 if self.device == "cpu" else 160.0


class TeachWorker:
    """The teachers of one process, and the shard that it read last."""

    def __init__(self, job: Job, ensemble: Ensemble | None = None) -> None:
        """Load the job's teachers, unless they are given as `ensemble`. Raises InputError for a store of others."""
        self.job = job
        self.device = local_device(job.device)
        self.ensemble = ensemble or Ensemble(load_teachers(job.teachers, self.device), job.pack.rate_hz)
        # A teacher's file may have been exchanged since the store was begun.
        if self.ensemble.describe() != job.store.teachers:
            names = ", ".join(t["name"] for t in self.ensemble.describe())
            raise InputError(f"{job.store.path} is a store of other teachers than these {names}: choose another folder")
        self._shards = ShardReader(job.pack)

    def predict(self, shard: Shard, epoch: int) -> int:
        """Predict all views of one (shard, epoch), write them to the store, and return the number of views.

        Raises CedEdgeError when a prediction is NaN.
        """
        store = self.job.store
        loaded = self._shards.load(shard)
        probs = np.concatenate([self.ensemble_numpy(batch) for batch in self._batches(loaded, epoch)])
        if not np.isfinite(probs).all():
            clip = loaded.ids[int((~np.isfinite(probs)).any(axis=1).argmax())]
            raise CedEdgeError(f"the teachers predict NaN for clip {clip} of {shard.name}: check their files")
        store.write(epoch, shard.name, TopK.top_k(probs, store.k))
        return shard.clips

    def ensemble_numpy(self, waves: list[Float32]) -> Float32:
        """Equally long waves -> probabilities (B, 527)."""
        with torch.inference_mode():
            wave = torch.from_numpy(np.stack(waves)).to(self.device)
            return self.ensemble(wave).float().cpu().numpy()

    def _batches(self, loaded: LoadedShard, epoch: int) -> Iterator[list[Float32]]:
        recipe, rate_hz = self.job.store.recipe, self.job.pack.rate_hz
        if epoch == CLEAN_EPOCH:
            # Whole clips differ in length. One at a time, so that no prediction depends on a neighbour's padding.
            yield from ([wave.astype(np.float32) * INT16_SCALE] for wave in loaded.waves)
            return
        clips = len(loaded.ids)
        size = max(1, int(self.job.batch_seconds / recipe.seconds(epoch)))
        for start in range(0, clips, size):
            views = (draw(recipe, epoch, i, loaded.ids) for i in range(start, min(start + size, clips)))
            yield [render(view, loaded.waves, loaded.rms, rate_hz) for view in views]


def units(job: Job) -> list[Unit]:
    """All (shard, epoch) pairs, a shard's epochs together so that it is read once; under torchrun this rank's."""
    rank, world = rank_and_world()
    return [(shard, epoch) for shard in job.pack.shards[rank::world] for epoch in job.store.epochs]


def teach(job: Job, workers: int = 1, progress: Progress | None = None, ensemble: Ensemble | None = None) -> None:
    """Fill the store; a run that was stopped continues where it stopped.

    On the CPU each worker is a process with one thread: a sum over threads would make the predictions, and the bytes
    of the files, depend on the number of cores. Under torchrun each rank takes its share of the shards. `ensemble`
    holds the job's teachers if they are loaded already; only the work in this process can use it. Raises InputError
    when the store is of other clips, views or teachers.
    """
    report = progress or (lambda _: None)
    _open(job.pack, job.store)
    todo = []
    for shard, epoch in units(job):
        if job.store.done(epoch, shard.name):
            report(shard.clips)
        else:
            todo.append((shard, epoch))
    workers = min(workers, len(todo)) if job.device == "cpu" else 1
    if not todo:
        return
    if workers <= 1:
        with _threads(1 if job.device == "cpu" else torch.get_num_threads()):
            worker = TeachWorker(job, ensemble)
            for shard, epoch in todo:
                report(worker.predict(shard, epoch))
        return
    with pool_of(workers, _start, job) as pool:
        for clips in in_order(pool, _predict, todo, ahead=2 * workers):
            report(clips)


def _open(pack: Pack, store: Store) -> None:
    """Make the store, or check that it is of this pack. Of several ranks only the first one writes the header."""
    if store.pack != pack.hash:
        raise InputError(f"{store.path} is a store of another pack: choose another folder, or delete it")
    if rank_and_world()[0] == 0:
        store.create()
    else:
        store.check()


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_job: Job | None = None
_worker: TeachWorker | None = None
"""Those of this process, when it is a worker of a pool."""


def _start(job: Job) -> None:
    """The first call in a worker process."""
    global _job
    _job = job
    # A unit that was stopped is done again by the next run: Ctrl-C need not wait for its end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)


def _predict(unit: Unit) -> int:
    global _worker
    if _worker is None:
        assert _job is not None
        _worker = TeachWorker(_job)  # here and not in `_start`, whose errors would be lost
    return _worker.predict(*unit)


def teach_labels(pack: Pack, store: Store) -> None:
    """Fill a clean store with the clips' own labels as probabilities 1: labels as one more kind of teacher.

    No other function of teaching or training reads labels. Raises InputError on a clip without labels or with more
    than K of them.
    """
    _open(pack, store)
    for shard in pack.shards:
        if store.done(CLEAN_EPOCH, shard.name):
            continue
        clips = read_shard(pack, shard)
        probs = np.zeros((len(clips), N_CLASSES), np.float32)
        for row, clip in zip(probs, clips, strict=True):
            if not clip.labels or len(clip.labels) > store.k:
                raise InputError(f"clip {clip.id} has {len(clip.labels or ())} labels: teaching takes 1 to {store.k}")
            row[list(clip.labels)] = 1.0
        store.write(CLEAN_EPOCH, shard.name, TopK.top_k(probs, store.k))
