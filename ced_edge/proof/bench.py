"""Latency, load time and memory of the model files of a bundle on this machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ced_edge.arrays import Float64
from ced_edge.proof.targets import Target, window
from ced_edge.proof.worker import Worker


@dataclass(frozen=True)
class Timing:
    """Times of one model file on one runtime. A call takes one full window, from the waveform to the probabilities."""

    file: str
    """Path of the model file."""
    kind: str
    runtime: str
    """Package and version."""
    threads: int
    median_ms: float
    p95_ms: float
    spread: float
    """(slowest - fastest) / median, of the rounds' medians. A smaller difference between two files means nothing."""
    real_time_factor: float
    """Time of a call divided by the length of its window: below 1 the file keeps up with live audio."""
    load_ms: float
    """Time to read, check and load the file, with the import of the runtime."""
    cold_ms: float
    """Time from the start of a process to its first probabilities."""
    peak_mb: float | None
    """Peak memory of such a process in 1e6 bytes, Python included; None where the system cannot measure it."""
    size_mb: float

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)


def time_rounds(workers: Sequence[Worker], rounds: int, repeats: int) -> Float64:
    """Seconds of every call: (workers, rounds, repeats).

    Each round visits every worker, so that a machine that is busy for a while slows all of them by the same.
    """
    waves = [window(worker.target.bundle) for worker in workers]
    # Rounds are the outer loop. With workers outside, each would be timed in its own minute of the machine's load.
    seconds = [[w.seconds(x, repeats) for w, x in zip(workers, waves, strict=True)] for _ in range(rounds)]
    return np.array(seconds, np.float64).transpose(1, 0, 2)


def spread(seconds: Float64) -> float:
    """(slowest - fastest) / median of the rounds' medians; seconds (rounds, repeats)."""
    # Of medians, because a single slow call says nothing about how far the rounds agree.
    medians = np.median(seconds, axis=1)
    return float((medians.max() - medians.min()) / np.median(medians))


def cold_ms(target: Target, threads: int) -> float:
    """Milliseconds from the start of a process to its first probabilities."""
    wave = window(target.bundle)
    with Worker(target, threads) as worker:
        # The first prediction belongs to a cold start: runtimes allocate memory and pack weights in it.
        worker.predict(wave)
        return 1e3 * (time.perf_counter() - worker.started)


def bench(
    targets: Sequence[Target], threads: Sequence[int] = (1,), rounds: int = 5, repeats: int = 10, cold: int = 3
) -> list[Timing]:
    """Time every target with every number of threads; the targets take turns. `cold` is the number of cold starts.

    Raises CedEdgeError when a file cannot be loaded or run.
    """
    timings: list[Timing] = []
    for n in threads:
        # Cold starts come first, one process at a time: a second one beside it would share its core and disk.
        colds = np.array([[cold_ms(target, n) for target in targets] for _ in range(cold)])
        with contextlib.ExitStack() as stack:
            # These processes live through all rounds, so what is timed here is warm.
            workers = [stack.enter_context(Worker(target, n)) for target in targets]
            times = time_rounds(workers, rounds, repeats)
            for worker, seconds, first in zip(workers, times, colds.T, strict=True):
                timings.append(_timing(worker, n, seconds, float(np.median(first))))
    return timings


def _timing(worker: Worker, threads: int, seconds: Float64, cold: float) -> Timing:
    """The figures of one worker; seconds (rounds, repeats), `cold` in milliseconds."""
    bundle, file = worker.target.bundle, worker.target.file
    median_s = float(np.median(seconds))
    return Timing(
        file=str(bundle.path(file)),
        kind=file.kind,
        runtime=worker.runtime,
        threads=threads,
        median_ms=1e3 * median_s,
        p95_ms=1e3 * float(np.percentile(seconds, 95)),
        spread=spread(seconds),
        real_time_factor=median_s / bundle.window_s,
        load_ms=1e3 * worker.load_s,
        cold_ms=cold,
        peak_mb=worker.peak_mb(),
        size_mb=file.bytes / 1e6,
    )
