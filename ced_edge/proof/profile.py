"""Time per type of operator: reported by ONNX Runtime for .onnx, measured operator by operator for .tflite."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ced_edge.frontend import log_mel
from ced_edge.proof.targets import Target, window
from ced_edge.proof.tflite_graph import Graph
from ced_edge.runtime.backends import TFLITE_RUNTIMES

VISIT_S = 2e-4
"""Shortest time that is measured at once, in seconds: far above the resolution of the clock."""


@dataclass(frozen=True)
class OpTime:
    """All operators of one type in a model file."""

    op: str
    calls: float
    """Number of calls in one run of the model."""
    ms: float
    """Time in one run of the model."""
    share: float
    """Share of the time of all operators."""


@dataclass(frozen=True)
class Profile:
    """The operators of a model file, with their times in one run."""

    ops: list[OpTime]
    """Types of operators, the slowest first."""
    whole_ms: float
    """Time of the whole model, measured in the same rounds."""
    method: str
    """How the operators were timed."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of operators that cannot run on their own, by type."""

    @property
    def ops_ms(self) -> float:
        """Sum of the times of all operators."""
        return sum(op.ms for op in self.ops)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {"ops_ms": self.ops_ms, **asdict(self)}


def profile(target: Target, repeats: int = 20, threads: int = 1) -> Profile:
    """Time per type of operator, measured in this process on a full window of noise.

    Raises NotInstalled where TFLite's schema is missing, InputError for a damaged .tflite file.
    """
    x = window(target.bundle)
    if target.bundle.input == "mel":
        x = log_mel(x, target.bundle.spec.frontend)
    measure = _profile_onnx if target.file.format == "onnx" else _profile_tflite
    return measure(target, x[None], repeats, threads)


def _profile_onnx(target: Target, x: NDArray[Any], repeats: int, threads: int) -> Profile:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors only: warnings about the CPU would go to the terminal
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "profile")
        path = str(target.bundle.path(target.file))
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(repeats + 1):
            session.run(None, {target.bundle.input: x})
        return aggregate(json.loads(Path(session.end_profiling()).read_text()))


def aggregate(events: Sequence[dict[str, Any]]) -> Profile:
    """ONNX Runtime's profile -> means over its runs. The first run, which allocates memory, is left out."""
    # A profile is one list of events with start times. An operator belongs to a counted run if it starts after the
    # first counted run does.
    runs = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: float(e["ts"]))[1:]
    # Other events of a node, such as waiting for memory, are in no operator's kernel.
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    times = [(e["args"]["op_name"], 1 / len(runs), e["dur"] / 1e3) for e in nodes if e["ts"] >= runs[0]["ts"]]
    whole_ms = sum(e["dur"] for e in runs) / 1e3 / len(runs)
    return Profile(_summed(times), whole_ms, "by ONNX Runtime's own profiler, while the whole model ran")


def _summed(calls_ms: Iterable[tuple[str, float, float]]) -> list[OpTime]:
    """(type, calls, ms of each call) -> one OpTime per type, the slowest first."""
    ms: dict[str, float] = defaultdict(float)
    calls: dict[str, float] = defaultdict(float)
    for op, n, each in calls_ms:
        ms[op] += n * each
        calls[op] += n
    times = [OpTime(op, round(calls[op], 6), ms[op], ms[op] / sum(ms.values())) for op in ms]
    return sorted(times, key=lambda t: -t.ms)


def _profile_tflite(target: Target, x: NDArray[Any], repeats: int, threads: int) -> Profile:
    module = importlib.import_module(next(name for name, package in TFLITE_RUNTIMES if package == target.runtime))
    path = target.bundle.path(target.file)
    graph = Graph(path)
    # Twelve equal blocks hold the same operators twelve times; each kind is timed once and counted as often.
    same_kind: dict[str, list[Any]] = defaultdict(list)
    for op in graph.operators:
        same_kind[graph.kind(op)].append(op)
    # Operators are timed on the values that they get in the model: some take longer on large or small numbers.
    values = run_plainly(module, path, x)
    parts, left_out = [loaded(module, [x], model_path=str(path), num_threads=threads)], Counter[str]()
    names, counts = [], []
    for first, *others in same_kind.values():
        try:
            inputs = [values.get_tensor(i) for i in graph.inputs(first)]
            parts.append(loaded(module, inputs, model_content=graph.cut(first), num_threads=threads))
        except (ValueError, RuntimeError):
            left_out[graph.name(first)] += 1 + len(others)
            continue
        names.append(graph.name(first))
        counts.append(1 + len(others))
    del values  # it holds every tensor of the model
    whole_ms, *ms = (1e3 * s for s in _median_seconds(parts, repeats))
    times = _summed(zip(names, counts, ms, strict=True))
    # The cheapest operator does next to nothing, so its time is an upper bound for what a call itself costs.
    call_us = 1e3 * min(ms, default=0)
    method = f"each operator timed alone, as a model of its own; calling it takes at most {call_us:.1f} us of its time"
    return Profile(times, whole_ms, method, dict(left_out))


def run_plainly(module: Any, path: Path, x: NDArray[Any]) -> Any:
    """An Interpreter of `module` that has run the file on `x` and holds the values of all tensors.

    It runs without delegates such as XNNPACK, which keep the tensors inside their part of the model to themselves.
    """
    plain = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    keep = {"experimental_op_resolver_type": plain, "experimental_preserve_all_tensors": True}
    return loaded(module, [x], model_path=str(path), **keep)


def loaded(module: Any, inputs: Sequence[NDArray[Any]], **flags: Any) -> Any:
    """An Interpreter of `module` that has run once on `inputs`. Raises ValueError or RuntimeError if it cannot run."""
    interpreter = module.Interpreter(**flags)
    interpreter.allocate_tensors()
    for d, x in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(d["index"], x)
    interpreter.invoke()
    return interpreter


def _median_seconds(interpreters: Sequence[Any], rounds: int) -> list[float]:
    """Median seconds of one call of each. Every round visits all, so that a busy moment slows all by the same."""
    # The smallest of three, as one call may be slowed by anything; it decides how many calls a visit needs.
    quickest = [min(_seconds(i, 1) for _ in range(3)) for i in interpreters]
    calls = [1 + int(VISIT_S / s) for s in quickest]
    times = [[_seconds(i, n) for i, n in zip(interpreters, calls, strict=True)] for _ in range(rounds)]
    return [float(s) for s in np.median(times, axis=0)]


def _seconds(interpreter: Any, calls: int) -> float:
    """Mean seconds of `calls` calls. A call before them refills the caches, which the other interpreters used."""
    interpreter.invoke()
    began = time.perf_counter()
    for _ in range(calls):
        interpreter.invoke()
    return (time.perf_counter() - began) / calls
