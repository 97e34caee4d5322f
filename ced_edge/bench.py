"""How fast a bundle is on this machine, how long it takes to load, and how much memory it needs."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ced_edge.artifact import Bundle
from ced_edge.errors import InputError
from ced_edge.frontend import log_mel
from ced_edge.worker import Target, Worker

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Timing:
    """One model file on one runtime, one full window a call, from the waveform to the probabilities."""

    file: str
    """Path of the model file."""
    kind: str
    runtime: str
    """With its version."""
    threads: int
    median_ms: float
    p95_ms: float
    spread: float
    """(slowest - fastest) / median, of the rounds' medians: below it, a difference tells nothing."""
    real_time_factor: float
    """Time it takes per time it hears: below 1 it keeps up."""
    load_ms: float
    """Reading, checking and loading, the runtime's import included."""
    cold_ms: float
    """From the start of a process to its first tags."""
    peak_mb: float | None
    """Most memory of such a process, Python included, in 1e6 bytes."""
    size_mb: float

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class OpTime:
    """All nodes of one type in a model file."""

    op: str
    calls: float
    """In one run of the model."""
    ms: float
    """In one run of the model."""
    share: float
    """Of the time of all nodes."""


def window(bundle: Bundle) -> Float32:
    """A full window of noise, always the same: (window_samples,)."""
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(bundle.window_samples)).astype(np.float32)


def time_rounds(workers: Sequence[Worker], rounds: int, repeats: int) -> NDArray[np.float64]:
    """Seconds of every call: (workers, rounds, repeats).

    Each round visits every worker, so that what else the machine does hits all of them alike.
    """
    waves = [window(worker.target.bundle) for worker in workers]
    seconds = [[w.seconds(x, repeats) for w, x in zip(workers, waves, strict=True)] for _ in range(rounds)]
    return np.array(seconds, np.float64).transpose(1, 0, 2)


def spread(seconds: NDArray[np.float64]) -> float:
    """Seconds (rounds, repeats) -> (slowest - fastest) / median, of the rounds' medians."""
    medians = np.median(seconds, axis=1)
    return float((medians.max() - medians.min()) / np.median(medians))


def cold_ms(target: Target, threads: int) -> float:
    """From the start of a process to its first tags."""
    wave = window(target.bundle)
    with Worker(target, threads) as worker:
        worker.predict(wave)
        return 1e3 * (time.perf_counter() - worker.started)


def bench(
    targets: Sequence[Target], threads: Sequence[int] = (1,), rounds: int = 5, repeats: int = 10, cold: int = 3
) -> list[Timing]:
    """Time every target with every number of threads, interleaved; `cold` processes are started for each."""
    found: list[Timing] = []
    for n in threads:
        colds = np.array([[cold_ms(target, n) for target in targets] for _ in range(cold)])
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(target, n)) for target in targets]
            times = time_rounds(workers, rounds, repeats)
            for worker, seconds, first in zip(workers, times, colds.T, strict=True):
                found.append(_timing(worker, n, seconds, float(np.median(first))))
    return found


def _timing(worker: Worker, threads: int, seconds: NDArray[np.float64], cold: float) -> Timing:
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


def profile(target: Target, repeats: int = 20, threads: int = 1) -> list[OpTime]:
    """Time per type of node, the slowest first. Raises InputError where the runtime cannot tell."""
    if target.file.format != "onnx":
        raise InputError(
            f"{target.name} has no per-op times: TFLite's Python interpreters do not give them; "
            "TensorFlow Lite's benchmark_model --enable_op_profiling=true does"
        )
    import onnxruntime as ort

    bundle, x = target.bundle, window(target.bundle)
    if bundle.input == "mel":
        x = log_mel(x, bundle.spec.frontend)
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "profile")
        session = ort.InferenceSession(str(bundle.path(target.file)), options, providers=["CPUExecutionProvider"])
        for _ in range(repeats + 1):
            session.run(None, {bundle.input: x[None]})
        return aggregate(json.loads(Path(session.end_profiling()).read_text()))


def aggregate(events: Sequence[dict[str, Any]]) -> list[OpTime]:
    """ONNX Runtime's profile -> time per type of node and run, the first run left out, the slowest type first."""
    runs = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: float(e["ts"]))[1:]
    total_us: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for e in events:
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time") and e["ts"] >= runs[0]["ts"]:
            total_us[e["args"]["op_name"]] += e["dur"]
            calls[e["args"]["op_name"]] += 1
    whole = sum(total_us.values())
    times = [OpTime(op, calls[op] / len(runs), us / 1e3 / len(runs), us / whole) for op, us in total_us.items()]
    return sorted(times, key=lambda t: -t.ms)


def cpu_name() -> str:
    """The processor's own name, as far as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
