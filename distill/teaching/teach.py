"""Teach: the teachers predict every view of every shard once, and their predictions go into a store.

A view is drawn and rendered here as training will draw and render it again, so that teacher and student get the same
samples (consistent teaching, arXiv 2308.11957).
"""

from __future__ import annotations

import collections
import contextlib
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ced_edge.arrays import Float32
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.spec import N_CLASSES
from distill.devices import local_device
from distill.feed import feed
from distill.packing.shards import Pack, read_shard
from distill.processes import in_order, pool_of, rank_and_world
from distill.teachers.ensemble import Ensemble
from distill.teachers.load import load_teachers
from distill.teachers.spec import TeacherSpec
from distill.teaching.rendering import Renderer, Renderings, Unit, Views
from distill.teaching.store import CLEAN_EPOCH, Store, TopK

Progress = Callable[[int], None]

RENDERED_BYTES = 1 << 26
"""Samples that each rendering process may have ready for a GPU, but at least 2 batches and at most 16."""
STARTED_AHEAD = 2
"""Batches that a GPU may have to do. Their samples are in its memory."""
KEPT_AHEAD = 16
"""Batches whose predictions may wait to be stored: a slow disk can take half a second to write a file."""


@dataclass(frozen=True)
class Job:
    """What a teaching process needs to know. It is sent to each process once."""

    pack: Pack
    store: Store
    teachers: tuple[TeacherSpec, ...]
    device: str = "cpu"
    """Under torchrun `cuda` is the GPU of the rank."""
    dtype: str = "fp32"
    """Arithmetic of the teachers, see `Ensemble`."""

    def load(self) -> Ensemble:
        """The teachers, on this process's device."""
        return Ensemble(load_teachers(self.teachers, local_device(self.device)), self.pack.rate_hz, self.dtype)


def batch_seconds(device: torch.device) -> float:
    """Seconds of audio per call of the ensemble. It depends on the kind of hardware alone, not on its free memory.

    A CPU is fastest with what stays near its caches. A GPU gets 16 s per GiB of its memory: a vision transformer of
    768 channels and 1,212 tokens per 10 s, the largest teacher here, takes about 0.1 GiB per 10 s.
    """
    if device.type == "cuda":
        return 16.0 * max(10, round(torch.cuda.get_device_properties(device).total_memory / 2**30))
    return 40.0 if device.type == "cpu" else 160.0


class Prediction:
    """The ensemble's probabilities of some views, while a GPU may still compute them."""

    def __init__(self, views: Views, probs: Tensor) -> None:
        self.shard, self.epoch, self.ids = views.shard, views.epoch, views.ids
        # On a GPU the copy only begins here, and `wait` waits for its end. Other devices wait here.
        self._event = torch.cuda.Event() if probs.is_cuda else None  # type: ignore[no-untyped-call]  # torch has no types
        self._probs = probs.to("cpu", non_blocking=probs.is_cuda)
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Until the probabilities are computed."""
        if self._event is not None:
            self._event.synchronize()

    def numpy(self) -> Float32:
        """(B, 527). Raises CedEdgeError when one is NaN."""
        self.wait()
        probs: Float32 = self._probs.numpy()
        if not np.isfinite(probs).all():
            clip = self.ids[int((~np.isfinite(probs)).any(axis=1).argmax())]
            raise CedEdgeError(f"the teachers predict NaN for clip {clip} of {self.shard.name}: check their files")
        return probs


class TeachWorker:
    """The teachers of one process, and what they predicted of units that are not finished yet."""

    def __init__(self, job: Job, ensemble: Ensemble | None = None) -> None:
        """Load the job's teachers, unless they are given as `ensemble`. Raises InputError for a store of others."""
        self.job = job
        self.ensemble = ensemble or job.load()
        # A teacher's file may have been exchanged since the store was begun.
        if self.ensemble.describe() != job.store.teachers:
            names = ", ".join(t["name"] for t in self.ensemble.describe())
            raise InputError(f"{job.store.path} is a store of other teachers than these {names}: choose another folder")
        self.renderer = Renderer(job.pack, job.store.recipe, batch_seconds(self.ensemble.device))
        self._rows: dict[tuple[str, int], list[TopK]] = {}

    def predict(self, unit: Unit) -> int:
        """Predict all views of one unit, write them to the store, and return the number of views.

        Raises CedEdgeError when a prediction is NaN.
        """
        shard, epoch = unit
        return sum(self.keep(self.start(views)) for views in self.renderer.batches(self.renderer.load(shard), epoch))

    def start(self, views: Views) -> Prediction:
        """Let the teachers predict some views."""
        with torch.inference_mode(), memory_errors():
            wave = views.wave.to(self.ensemble.device, non_blocking=True)
            return Prediction(views, self.ensemble(wave).float())

    def keep(self, prediction: Prediction) -> int:
        """Keep the top K of a prediction. With the last one of a unit, write the unit and return its number of views.

        The predictions of one unit must come in order. Raises CedEdgeError when one is NaN.
        """
        shard, epoch = prediction.shard, prediction.epoch
        rows = self._rows.setdefault((shard.name, epoch), [])
        rows.append(TopK.top_k(prediction.numpy(), self.job.store.k))
        if sum(len(part.tail) for part in rows) < shard.clips:
            return 0
        self.job.store.write(epoch, shard.name, TopK.joined(self._rows.pop((shard.name, epoch))))
        return shard.clips


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Report a GPU's lack of memory in one line. Raises CedEdgeError."""
    try:
        yield
    except torch.OutOfMemoryError as e:
        raise CedEdgeError(
            "the teachers need more memory than the GPU has: use a larger GPU, end what else runs on it, or use fewer "
            "or smaller teachers"
        ) from e


def units(job: Job) -> list[Unit]:
    """All (shard, epoch) pairs, a shard's epochs together so that it is read once; under torchrun this rank's."""
    rank, world = rank_and_world()
    return [(shard, epoch) for shard in job.pack.shards[rank::world] for epoch in job.store.epochs]


def left(job: Job) -> tuple[list[Unit], int]:
    """The units of this rank that are not in the store yet, and the number of views that are.

    Raises InputError when a file of the store is for other clips, views or teachers.
    """
    all_units = units(job)
    missing = set(job.store.left(dict.fromkeys(shard.name for shard, _ in all_units), job.store.epochs))
    todo = [(shard, epoch) for shard, epoch in all_units if (shard.name, epoch) in missing]
    return todo, sum(shard.clips for shard, _ in all_units) - sum(shard.clips for shard, _ in todo)


def teach(job: Job, workers: int = 1, progress: Progress | None = None, ensemble: Ensemble | None = None) -> None:
    """Fill the store; a run that was stopped continues where it stopped.

    On the CPU each of the `workers` is a process with teachers and one thread: a sum over threads would make the
    predictions, and the bytes of the files, depend on the number of cores. On another device the teachers are in this
    process, and the workers render views ahead of it. Either way the number of workers changes no byte. Under torchrun
    each rank takes its share of the shards. `ensemble` holds the job's teachers if they are loaded already; only the
    work in this process can use it. Raises InputError when the store is of other clips, views or teachers.
    """
    report = progress or (lambda _: None)
    _open(job.pack, job.store)
    todo, done = left(job)
    if done:
        report(done)
    if not todo:
        return
    if job.device != "cpu":
        teach_from_feed(TeachWorker(job, ensemble), todo, workers, report)
        return
    workers = min(workers, len(todo))
    if workers <= 1:
        with _threads(1):
            worker = TeachWorker(job, ensemble)
            for unit in todo:
                report(worker.predict(unit))
        return
    with pool_of(workers, _start, job) as pool:
        for clips in in_order(pool, _predict, todo, ahead=2 * workers):
            report(clips)


def teach_from_feed(worker: TeachWorker, todo: list[Unit], renderers: int, report: Progress) -> None:
    """Predict the units in this process, whose views so many other processes render ahead (0: this one).

    The predictions are stored in a thread of their own, so that the GPU need not wait for it.
    """
    renderings = Renderings(worker.renderer, todo)
    mend = "use fewer --workers, and run again to go on"
    batch_bytes = 4 * worker.renderer.seconds * worker.renderer.pack.rate_hz
    ahead = min(16, max(2, int(RENDERED_BYTES / batch_bytes)))
    views = feed(renderings, renderers, ahead, mend, pinned=worker.ensemble.device.type == "cuda")
    with contextlib.closing(views), ThreadPoolExecutor(1) as keeper:
        for clips in in_order(keeper, worker.keep, _started(worker, views), ahead=KEPT_AHEAD):
            if clips:
                report(clips)


def _started(worker: TeachWorker, views: Iterator[Views]) -> Iterator[Prediction]:
    """Predictions in order. The GPU computes STARTED_AHEAD of them while this process does other work."""
    running: collections.deque[Prediction] = collections.deque()
    for some in views:
        running.append(worker.start(some))
        yield running[-1]
        if len(running) > STARTED_AHEAD:
            running.popleft().wait()


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
    return _worker.predict(unit)


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
