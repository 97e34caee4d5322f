"""Teach: the ensemble answers every view of every shard, once, into a store."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ced_edge.arrays import Float32
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.spec import N_CLASSES
from distill.devices import local_device
from distill.packing.shards import Pack, PackedClip, Shard, read_shard
from distill.processes import in_order, pool_of, rank_and_world
from distill.teachers import TeacherSpec, load_teachers
from distill.teachers.ensemble import Ensemble
from distill.teaching.store import CLEAN_EPOCH, Store, TopK
from distill.teaching.views import INT16_SCALE, clip_rms, draw, render

Progress = Callable[[int], None]
Unit = tuple[Shard, int]
"""A shard and an epoch: what is answered, and stored, as a whole."""


@dataclass(frozen=True)
class Job:
    """What a teaching process needs: it loads its own teachers."""

    pack: Pack
    store: Store
    teachers: tuple[TeacherSpec, ...]
    device: str = "cpu"
    """Under torchrun `cuda` is the GPU of the rank."""

    @property
    def batch_seconds(self) -> float:
        """Audio per call of the ensemble: on a CPU no more than stays near its caches."""
        return 40.0 if self.device == "cpu" else 160.0


class TeachWorker:
    """One process's teachers and the shard it read last."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.device = local_device(job.device)
        self.ensemble = Ensemble(load_teachers(job.teachers, self.device), job.pack.rate_hz)
        self._shard: tuple[str, list[PackedClip], list[float]] | None = None

    def answer(self, shard: Shard, epoch: int) -> int:
        """Answer all views of one (shard, epoch) and store them. Returns the number of views.

        Raises CedEdgeError when a teacher's answer is no number.
        """
        store = self.job.store
        clips, rms = self._read(shard)
        answers = np.concatenate([self.ensemble_numpy(batch) for batch in self._batches(clips, rms, epoch)])
        if not np.isfinite(answers).all():
            clip = clips[int((~np.isfinite(answers)).any(axis=1).argmax())].id
            raise CedEdgeError(f"the teachers answer NaN for clip {clip} of {shard.name}: check their files")
        store.write(epoch, shard.name, TopK.top_k(answers, store.k))
        return shard.clips

    def ensemble_numpy(self, waves: list[Float32]) -> Float32:
        """Equally long waves -> probabilities (B, 527)."""
        with torch.inference_mode():
            wave = torch.from_numpy(np.stack(waves)).to(self.device)
            return self.ensemble(wave).float().cpu().numpy()

    def _batches(self, clips: Sequence[PackedClip], rms: Sequence[float], epoch: int) -> Iterator[list[Float32]]:
        recipe, rate_hz = self.job.store.recipe, self.job.pack.rate_hz
        if epoch == CLEAN_EPOCH:
            # Whole clips have lengths of their own, and no answer may hang on a neighbour's padding.
            yield from ([clip.wave.astype(np.float32) * INT16_SCALE] for clip in clips)
            return
        ids, waves = [clip.id for clip in clips], [clip.wave for clip in clips]
        size = max(1, int(self.job.batch_seconds / recipe.seconds(epoch)))
        for start in range(0, len(clips), size):
            views = (draw(recipe, epoch, i, ids) for i in range(start, min(start + size, len(clips))))
            yield [render(view, waves, rms, rate_hz) for view in views]

    def _read(self, shard: Shard) -> tuple[list[PackedClip], list[float]]:
        if self._shard is None or self._shard[0] != shard.name:
            clips = read_shard(self.job.pack, shard)
            self._shard = (shard.name, clips, [clip_rms(clip.wave) for clip in clips])
        return self._shard[1], self._shard[2]


def units(job: Job) -> list[Unit]:
    """All (shard, epoch) pairs, a shard's epochs together so that it is read once; under torchrun this rank's."""
    rank, world = rank_and_world()
    return [(shard, epoch) for shard in job.pack.shards[rank::world] for epoch in job.store.epochs]


def teach(job: Job, workers: int = 1, progress: Progress | None = None) -> None:
    """Fill the store; goes on where an earlier run stopped.

    On the CPU every worker is a process of one thread, so that the answers, and the files to the byte, do not hang
    on the number of cores. Under torchrun each rank takes its share of the shards. Raises InputError when the store
    is of other clips, views or teachers.
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
            classroom = _new_worker(job)
            for shard, epoch in todo:
                report(classroom.answer(shard, epoch))
        return
    with pool_of(workers) as pool:
        for clips in in_order(pool, _answer, ((job, unit) for unit in todo), ahead=2 * workers):
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


def _new_worker(job: Job) -> TeachWorker:
    classroom = TeachWorker(job)
    if classroom.ensemble.describe() != job.store.teachers:
        names = ", ".join(t["name"] for t in classroom.ensemble.describe())
        raise InputError(f"{job.store.path} is a store of other teachers than these {names}: choose another folder")
    return classroom


_mine: TeachWorker | None = None
"""A worker process's own."""


def _answer(work: tuple[Job, Unit]) -> int:
    global _mine
    job, (shard, epoch) = work
    if _mine is None:
        # What a unit has done can be done again: Ctrl-C need not wait for its end.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        torch.set_num_threads(1)
        _mine = _new_worker(job)
    return _mine.answer(shard, epoch)


def teach_labels(pack: Pack, store: Store) -> None:
    """Fill a clean store with the clips' own labels as probabilities 1: labels as one more kind of teacher.

    Only this function reads labels; training sees a store like any other. Raises InputError on a clip without labels
    or with more than K of them.
    """
    _open(pack, store)
    for shard in pack.shards:
        if store.done(CLEAN_EPOCH, shard.name):
            continue
        clips = read_shard(pack, shard)
        probabilities = np.zeros((len(clips), N_CLASSES), np.float32)
        for row, clip in zip(probabilities, clips, strict=True):
            if not clip.labels or len(clip.labels) > store.k:
                raise InputError(f"clip {clip.id} has {len(clip.labels or ())} labels: teaching takes 1 to {store.k}")
            row[list(clip.labels)] = 1.0
        store.write(CLEAN_EPOCH, shard.name, TopK.top_k(probabilities, store.k))
