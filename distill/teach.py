"""Teach: the ensemble answers every view of every shard, once, into a store."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ced_edge.errors import InputError
from distill.ensemble import Ensemble
from distill.shards import Pack, PackedClip, Shard, read_shard
from distill.store import CLEAN_EPOCH, Answers, Store
from distill.teachers import TeacherSpec, load_teachers
from distill.views import INT16_SCALE, clip_rms, draw, render

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Job:
    """What a teaching process needs: it loads its own teachers."""

    pack: Pack
    store: Store
    teachers: tuple[TeacherSpec, ...]
    device: str = "cpu"
    batch_seconds: float = 160.0
    """Audio per call of the ensemble."""


class Classroom:
    """One process's teachers and the shard it read last."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.ensemble = Ensemble(load_teachers(job.teachers, job.device), job.pack.rate_hz)
        self._shard: tuple[str, list[PackedClip], list[float]] | None = None

    def answer(self, shard: Shard, epoch: int) -> int:
        """Answer all views of one (shard, epoch) and store them. Returns the number of views."""
        store = self.job.store
        if not store.done(epoch, shard.name):
            clips, rms = self._read(shard)
            batches = [self.ensemble_numpy(batch) for batch in self._batches(clips, rms, epoch)]
            store.write(epoch, shard.name, Answers.top_k(np.concatenate(batches), store.k))
        return shard.clips

    def ensemble_numpy(self, waves: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Equally long waves -> probabilities (B, 527)."""
        with torch.inference_mode():
            wave = torch.from_numpy(np.stack(waves)).to(self.job.device)
            return self.ensemble(wave).float().cpu().numpy()

    def _batches(
        self, clips: Sequence[PackedClip], rms: Sequence[float], epoch: int
    ) -> Iterator[list[NDArray[np.float32]]]:
        recipe, rate_hz = self.job.store.recipe, self.job.pack.rate_hz
        if epoch == CLEAN_EPOCH:
            # Whole clips have lengths of their own, and no answer may hang on a neighbour's padding.
            yield from ([clip.wave.astype(np.float32) * INT16_SCALE] for clip in clips)
            return
        ids, waves = [clip.id for clip in clips], [clip.wave for clip in clips]
        size = max(1, int(self.job.batch_seconds / recipe.seconds(epoch)))
        for start in range(0, len(clips), size):
            views = (draw(recipe, epoch, i, ids, rate_hz / 2) for i in range(start, min(start + size, len(clips))))
            yield [render(view, waves, rms, rate_hz) for view in views]

    def _read(self, shard: Shard) -> tuple[list[PackedClip], list[float]]:
        if self._shard is None or self._shard[0] != shard.name:
            clips = read_shard(self.job.pack, shard)
            self._shard = (shard.name, clips, [clip_rms(clip.wave) for clip in clips])
        return self._shard[1], self._shard[2]


def units(job: Job) -> list[tuple[Shard, int]]:
    """All (shard, epoch) pairs, a shard's epochs together so that it is read once; this rank's share under torchrun."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return [(shard, epoch) for shard in job.pack.shards for epoch in job.store.epochs][rank::world]


def teach(job: Job, workers: int = 1, progress: Progress | None = None) -> None:
    """Fill the store; goes on where an earlier run stopped.

    On the CPU every worker is a process of one thread, so that the answers, and the files to the byte, do not hang
    on the number of cores. Under torchrun each rank takes its share. Raises InputError when the store is of other
    clips, views or teachers.
    """
    if job.store.pack != job.pack.hash:
        raise InputError(f"{job.store.path} is a store of another pack: choose another folder, or delete it")
    job.store.create()
    todo = [(shard, epoch) for shard, epoch in units(job) if not _report(job, shard, epoch, progress)]
    if not todo:
        return
    if workers <= 1 or job.device != "cpu":
        _start(job)
        for unit in todo:
            n = _answer(unit)
            if progress:
                progress(n)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(todo)), initializer=_start, initargs=(job,)) as pool:
        for n in pool.imap_unordered(_answer, todo):
            if progress:
                progress(n)


def _report(job: Job, shard: Shard, epoch: int, progress: Progress | None) -> bool:
    done = job.store.done(epoch, shard.name)
    if done and progress:
        progress(shard.clips)
    return done


_classroom: Classroom | None = None


def _start(job: Job) -> None:
    global _classroom
    if job.device == "cpu":
        torch.set_num_threads(1)
    _classroom = Classroom(job)


def _answer(unit: tuple[Shard, int]) -> int:
    assert _classroom is not None
    return _classroom.answer(*unit)


def teach_labels(pack: Pack, store: Store) -> None:
    """Fill a clean store with the clips' own labels as probabilities 1: labels as one more kind of teacher.

    Only this function reads labels; training sees a store like any other. Raises InputError on a clip without labels
    or with more than K of them.
    """
    store.create()
    for shard in pack.shards:
        if store.done(CLEAN_EPOCH, shard.name):
            continue
        clips = read_shard(pack, shard)
        probabilities = np.zeros((len(clips), 527), np.float32)
        for row, clip in zip(probabilities, clips, strict=True):
            if not clip.labels or len(clip.labels) > store.k:
                raise InputError(f"clip {clip.id} has {len(clip.labels or ())} labels: teaching takes 1 to {store.k}")
            row[list(clip.labels)] = 1.0
        store.write(CLEAN_EPOCH, shard.name, Answers.top_k(probabilities, store.k))
