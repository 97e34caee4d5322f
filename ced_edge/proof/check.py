"""Was accuracy lost? Every model file of a bundle is held against the reference of the checkpoint it came from."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ced_edge.arrays import Bools, Float32
from ced_edge.audio.clips import Clip, load_clip
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.proof import metrics
from ced_edge.proof.bench import spread, time_rounds
from ced_edge.proof.bounds import DEFAULTS, Bounds
from ced_edge.proof.compare import Comparison, compare
from ced_edge.proof.reference import Reference, same_data, same_model
from ced_edge.proof.targets import Target, fp32_target
from ced_edge.proof.worker import Worker
from ced_edge.runtime.bundle import Bundle
from ced_edge.windows import chunks

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Result:
    """What one model file did on one runtime."""

    file: str
    """Path of the model file."""
    kind: str
    runtime: str
    """With its version."""
    mean_ap: float
    reference: Comparison
    """Against the reference's answers."""
    fp32: Comparison | None
    """Where not all clips are `alike`: against the fp32 file that heard the same (see `worker.fp32_target`), and the
    reference where that did. None where there is no such file."""
    clips: int
    alike: int
    """Clips that the window neither cuts nor fills otherwise than the checkpoint heard them."""
    stream_difference: float | None
    """Largest difference of a probability heard in pieces; None where that was not asked for."""
    latency_ms: float
    """Median of one full window."""
    spread: float
    size_mb: float
    memory_mb: float | None
    broken: tuple[str, ...] = ()
    """Bounds that do not hold, in words."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        compared = {k: v.to_dict() for k, v in fields.items() if isinstance(v, Comparison)}
        return {**fields, **compared, "broken": list(self.broken)}


def same_input(bundle: Bundle, fixed: bool, samples: int) -> bool:
    """Whether a file of this bundle, with a `fixed` time axis or a free one, hears a clip as the checkpoint does."""
    spans = chunks(samples, bundle.window_samples)
    same_cuts = spans == chunks(samples, bundle.spec.max_samples)
    return same_cuts and not (fixed and any(stop - start < bundle.window_samples for start, stop in spans))


def check(
    wanted: Sequence[Target],
    reference: Reference,
    clips: Sequence[Clip],
    limits: Mapping[str, Bounds],
    *,
    stream: bool = False,
    threads: int = 1,
    rounds: int = 3,
    repeats: int = 5,
    progress: Callable[[int], None] | None = None,
) -> list[Result]:
    """Let every target hear the clips, each in a process of its own, and hold it to the bounds of its kind.

    With `stream` each clip is heard in pieces too, which must change nothing. Raises InputError on a reference of
    other weights, data or classes, on broken audio, and on a target without a runtime.
    """
    for target in wanted:
        if not target.runtime:
            name, package = target.file.name, {"onnx": "onnxruntime"}.get(target.file.format, "ai-edge-litert")
            raise InputError(
                f"nothing here runs {name}: pip install {package}, or leave it out with --format or --file"
            )
        same_model(target.bundle, reference)
    clips = same_data(clips, reference)
    row = {name: i for i, name in enumerate(reference.ids)}
    base = reference.probs[[row[clip.id] for clip in clips]]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(target, threads)) for target in wanted]
        heard = _predict_all(workers, clips, base, stream, _Fp32Files(workers, stack, threads), progress)
        seconds = time_rounds(workers, rounds, repeats)
        results = [
            Result(
                file=str(worker.target.bundle.path(worker.target.file)),
                kind=worker.target.file.kind,
                runtime=worker.runtime,
                **_compared(clips, base, h),
                latency_ms=1e3 * float(np.median(s)),
                spread=spread(s),
                size_mb=worker.target.file.bytes / 1e6,
                memory_mb=worker.peak_mb(),
            )
            for worker, s, h in zip(workers, seconds, heard, strict=True)
        ]
    return [dataclasses.replace(r, broken=tuple(broken(r, limits[r.kind]))) for r in results]


@dataclass(frozen=True, eq=False)
class _Predictions:
    """Answers of one target."""

    probs: Float32
    """(N, C)."""
    expected: Float32
    """(N, C): the reference's for clips that were heard alike, else the yardstick's; NaN without one."""
    alike: Bools
    """(N,)."""
    stream_difference: float | None


class _Fp32Files:
    """The answers that clips are held to which a file hears otherwise than the checkpoint did."""

    def __init__(self, workers: Sequence[Worker], stack: contextlib.ExitStack, threads: int) -> None:
        self._workers = {self._key(w.target): w for w in workers}
        self._wanted, self._stack, self._threads = set(self._workers), stack, threads

    @staticmethod
    def _key(target: Target) -> tuple[str, str]:
        return str(target.bundle.path(target.file)), target.runtime

    def answer(self, worker: Worker, wave: Float32, base: Float32) -> Float32:
        """What fp32 says (C,) to what `worker` hears of `wave`; NaN where nothing can. Raises CedEdgeError when the
        yardstick is not itself held to the reference, and answers otherwise than that, `base` (C,)."""
        found = fp32_target(worker.target)
        if found is None:
            return np.full_like(base, np.nan)
        key = self._key(found)
        if key not in self._workers:  # only now: where all clips are heard alike, none is needed
            self._workers[key] = self._stack.enter_context(Worker(found, self._threads))
        yard = self._workers[key]
        if key not in self._wanted and same_input(found.bundle, yard.fixed, len(wave)):
            error = float(np.abs(yard.predict(wave) - base).max())
            if error > (limit := DEFAULTS["fp32"].max_error):
                raise CedEdgeError(
                    f"{found.name}, which the others are held to, is off by {error:.2g}, over {limit:g}: export again"
                )
        return yard.predict(wave, filled=worker.fixed)


def _predict_all(
    workers: Sequence[Worker],
    clips: Sequence[Clip],
    base: Float32,
    stream: bool,
    fp32_files: _Fp32Files,
    progress: Callable[[int], None] | None,
) -> list[_Predictions]:
    heard = [_Predictions(np.empty_like(base), base.copy(), np.empty(len(clips), bool), None) for _ in workers]
    differences = [0.0] * len(workers)
    rng = np.random.default_rng(0)
    for i, clip in enumerate(clips):
        waves = {rate: load_clip(clip, rate) for rate in {w.target.bundle.spec.frontend.rate_hz for w in workers}}
        for k, (worker, h) in enumerate(zip(workers, heard, strict=True)):
            b = worker.target.bundle
            wave = waves[b.spec.frontend.rate_hz]
            h.probs[i] = worker.predict(wave)
            h.alike[i] = same_input(b, worker.fixed, len(wave))
            if not h.alike[i]:
                h.expected[i] = fp32_files.answer(worker, wave, base[i])
            if stream:
                # From 20 ms, as a microphone gives them, to pieces longer than a window.
                pieces = np.exp(rng.uniform(np.log(320), np.log(2 * b.window_samples), 1 + len(wave) // 320))
                differences[k] = max(differences[k], worker.stream_difference(wave, pieces.astype(int).tolist()))
        if progress:
            progress(1)
    if not stream:
        return heard
    return [dataclasses.replace(h, stream_difference=d) for h, d in zip(heard, differences, strict=True)]


def _compared(clips: Sequence[Clip], base: Float32, heard: _Predictions) -> dict[str, Any]:
    """The fields of a Result that tell of accuracy."""
    known = np.array([clip.labels is not None for clip in clips])
    targets = metrics.multi_hot([clip.labels or () for clip in clips], base.shape[1])
    everywhere = np.ones(len(clips), bool)
    same = not heard.alike.all() and np.isfinite(heard.expected).all()
    return {
        "mean_ap": metrics.mean_ap(metrics.average_precision(targets[known], heard.probs[known])),
        "reference": compare(targets, heard.probs, base, known, heard.alike),
        "fp32": compare(targets, heard.probs, heard.expected, known, everywhere) if same else None,
        "clips": len(clips),
        "alike": int(heard.alike.sum()),
        "stream_difference": heard.stream_difference,
    }


def broken(result: Result, bounds: Bounds) -> list[str]:
    """The bounds that do not hold, in words. See `Bounds` for clips that were heard otherwise."""
    alike = result.alike == result.clips
    found = _over("mAP drop", result.reference.drop, bounds.max_drop + (0.0 if alike else bounds.max_window_drop))
    found += _accuracy(result.reference, bounds, alike, "")
    if result.fp32 is not None:
        found += _over("mAP drop below fp32", result.fp32.drop, bounds.max_drop)
        found += _accuracy(result.fp32, bounds, True, " from fp32")
    if result.stream_difference is not None:
        found += _over("difference in a stream", result.stream_difference, 0.0)
    found += _over("latency in ms", result.latency_ms, bounds.max_latency_ms)
    found += _over("size in MB", result.size_mb, bounds.max_size_mb)
    if result.memory_mb is not None:
        found += _over("memory in MB", result.memory_mb, bounds.max_memory_mb)
    elif bounds.max_memory_mb < math.inf:
        found.append("memory cannot be measured on this system")
    return found


def _accuracy(c: Comparison, bounds: Bounds, classes: bool, against: str) -> list[str]:
    found: list[str] = []
    if classes and c.class_drop > bounds.max_class_drop:
        found = _over(f"drop{against} of {c.worst(1)[0][0]}", c.class_drop, bounds.max_class_drop)
    if c.clips:
        found += _over(f"probability error{against}", c.max_error, bounds.max_error)
        found += _over(f"noise{against}", c.noise, bounds.max_noise)
        if c.top1 < bounds.min_top1:
            found.append(f"top-1 agreement{against} {c.top1:.3f} is below {bounds.min_top1:g}")
    return found


def _over(what: str, value: float, limit: float) -> list[str]:
    return [] if value <= limit else [f"{what} {value:.2g} is over {limit:g}"]
