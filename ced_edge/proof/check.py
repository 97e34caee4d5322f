"""Was accuracy lost? Compare every model file of a bundle with the reference of its checkpoint.

Read from `check` down: predict all clips with every file, compare the predictions, and apply the bounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ced_edge.arrays import Bools, Float32, Float64
from ced_edge.audio.clips import Clip, load_clip
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.proof import metrics
from ced_edge.proof.bench import spread, time_rounds
from ced_edge.proof.bounds import DEFAULTS, NONE, Bounds, accuracy_problems, over
from ced_edge.proof.compare import Comparison, compare
from ced_edge.proof.reference import Reference, same_data, same_model
from ced_edge.proof.targets import Target, fp32_target, install_advice
from ced_edge.proof.worker import Worker
from ced_edge.runtime.bundle import Bundle
from ced_edge.windows import chunks


@dataclass(frozen=True, eq=False)
class Result:
    """What was measured of one model file on one runtime."""

    file: str
    """Path of the model file."""
    kind: str
    runtime: str
    """With its version."""
    reference: Comparison
    """Against the reference, over clips with the same input (see `same_input`)."""
    fp32: Comparison | None
    """Where some clips had another input: against the fp32 file on that input (see `targets.fp32_target`), and
    against the reference for the other clips. None where all clips had the same input, or there is no fp32 file."""
    clips: int
    """Number of all clips."""
    stream_difference: float | None
    """Largest difference of a probability when the clips are streamed; None where that was not requested."""
    latency_ms: float
    """Median time for one full window."""
    spread: float
    """Spread of the rounds' median times, see `bench.spread`."""
    size_mb: float
    memory_mb: float | None
    """Peak memory of the process in 1e6 bytes; None where the system cannot measure it."""
    broken: tuple[str, ...] = ()
    """Bounds that do not hold, in words."""
    compared_with: str = "the reference"
    """What the predictions are compared with, in words. Without an fp32 file it is the reference alone."""
    unchecked: tuple[str, ...] = ()
    """Bounds that could not be applied, in words: there was nothing to compare with."""

    @property
    def mean_ap(self) -> float:
        """mAP of this file."""
        return self.reference.mean_ap

    @property
    def same_input(self) -> int:
        """Number of clips that the file's window neither cuts nor pads differently than the checkpoint did."""
        return self.reference.clips

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        compared = {k: v.to_dict() for k, v in fields.items() if isinstance(v, Comparison)}
        texts = {"broken": list(self.broken), "unchecked": list(self.unchecked)}
        return {**fields, **compared, **texts, "mean_ap": self.mean_ap, "same_input": self.same_input}


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
    """Predict all clips with every target, each in its own process, and apply the bounds of its kind.

    With `stream`, overlapping windows of each clip are predicted in a stream too, which must change nothing.
    `rounds` and `repeats` are those of the timing, see `bench.time_rounds`. Raises InputError for a reference of
    other weights, data or classes, for broken audio, and for a target without a runtime.
    """
    if missing := [target for target in wanted if not target.runtime]:
        raise InputError(f"{install_advice(missing)}, or leave it out with --format or --file")
    for target in wanted:
        same_model(target.bundle, reference)
    clips = same_data(clips, reference)
    # The manifest may list the clips in another order than `ced-edge evaluate` had them.
    row = {name: i for i, name in enumerate(reference.ids)}
    base = reference.probs[[row[clip.id] for clip in clips]]  # (N, C), in the order of the clips
    with contextlib.ExitStack() as stack:
        # All processes live at once: each clip is decoded once for all files, and the timing takes turns.
        workers = [stack.enter_context(Worker(target, threads)) for target in wanted]
        predictions = _predict_all(workers, clips, base, stream, _Fp32Files(workers, stack, threads), progress)
        seconds = time_rounds(workers, rounds, repeats)
        results = [
            _result(worker, p, s, clips, base) for worker, p, s in zip(workers, predictions, seconds, strict=True)
        ]
    return [
        dataclasses.replace(
            r, broken=tuple(broken_bounds(r, limits[r.kind])), unchecked=tuple(unchecked_bounds(r, limits[r.kind]))
        )
        for r in results
    ]


@dataclass(frozen=True, eq=False)
class _Predictions:
    """Predictions of one target."""

    probs: Float32
    """(N, C)."""
    expected: Float32
    """(N, C): the reference's for clips with the same input, else the fp32 file's; NaN where there is no such file."""
    same_input: Bools
    """(N,)."""
    stream_difference: float | None


def _predict_all(
    workers: Sequence[Worker],
    clips: Sequence[Clip],
    base: Float32,
    stream: bool,
    fp32_files: _Fp32Files,
    progress: Callable[[int], None] | None,
) -> list[_Predictions]:
    """Predict every clip with every worker; `base` (N, C) is the reference."""
    predictions = [_Predictions(np.empty_like(base), base.copy(), np.empty(len(clips), bool), None) for _ in workers]
    differences = [0.0] * len(workers)
    rng = np.random.default_rng(0)  # the same pieces in every run, so that a difference can be found again
    for i, clip in enumerate(clips):
        # Bundles of other rates need the clip resampled for each rate, but decoded and resampled once per rate only.
        waves = {rate: load_clip(clip, rate) for rate in {w.target.bundle.spec.frontend.rate_hz for w in workers}}
        for k, (worker, p) in enumerate(zip(workers, predictions, strict=True)):
            b = worker.target.bundle
            wave = waves[b.spec.frontend.rate_hz]
            p.probs[i] = worker.predict(wave)
            p.same_input[i] = same_input(b, worker.fixed, len(wave))
            if not p.same_input[i]:
                p.expected[i] = fp32_files.expected(worker, wave, base[i])
            if stream:
                # From 20 ms, as a microphone delivers them, to pieces longer than a window.
                pieces = np.exp(rng.uniform(np.log(320), np.log(2 * b.window_samples), 1 + len(wave) // 320))
                differences[k] = max(differences[k], worker.stream_difference(wave, pieces.astype(int).tolist()))
        if progress:
            progress(1)
    if not stream:
        return predictions
    return [dataclasses.replace(p, stream_difference=d) for p, d in zip(predictions, differences, strict=True)]


def same_input(bundle: Bundle, fixed: bool, samples: int) -> bool:
    """Whether a clip of this many samples reaches the model as it reached the checkpoint.

    It does when the file's window cuts it at the same places and, with a `fixed` time axis, pads nothing.
    """
    spans = chunks(samples, bundle.window_samples)
    same_cuts = spans == chunks(samples, bundle.spec.max_samples)
    return same_cuts and not (fixed and any(stop - start < bundle.window_samples for start, stop in spans))


class _Fp32Files:
    """Expected predictions for clips that a file cuts or pads differently than the checkpoint did."""

    def __init__(self, workers: Sequence[Worker], stack: contextlib.ExitStack, threads: int) -> None:
        """`workers` are those that are checked anyway; others are started on `stack` when they are needed."""
        self._workers = {self._key(w.target): w for w in workers}
        self._checked, self._stack, self._threads = set(self._workers), stack, threads

    @staticmethod
    def _key(target: Target) -> tuple[str, str]:
        return str(target.bundle.path(target.file)), target.runtime

    def expected(self, worker: Worker, wave: Float32, base: Float32) -> Float32:
        """The fp32 model's prediction (C,) for `wave`, padded as `worker` pads it; NaN without an fp32 file.

        Raises CedEdgeError if the fp32 file itself misses the reference `base` (C,).
        """
        target = fp32_target(worker.target)
        if target is None:
            return np.full_like(base, np.nan)
        key = self._key(target)
        if key not in self._workers:
            self._workers[key] = self._stack.enter_context(Worker(target, self._threads))
        fp32 = self._workers[key]
        # A wrong fp32 file would excuse a wrong int8 file. If it is not among the checked files, no other code
        # compares it with the reference. So that happens here, on clips that it takes without cutting or padding.
        if key not in self._checked and same_input(target.bundle, fp32.fixed, len(wave)):
            error = float(np.abs(fp32.predict(wave) - base).max())
            if not error <= (limit := DEFAULTS["fp32"].max_error):
                raise CedEdgeError(
                    f"{target.name}, which the others are compared with, is off by {error:.2g}, over {limit:g}: "
                    "export again"
                )
        return fp32.predict(wave, filled=worker.fixed)


def _result(
    worker: Worker, predictions: _Predictions, seconds: Float64, clips: Sequence[Clip], base: Float32
) -> Result:
    """Everything measured of one worker; `seconds` (rounds, repeats), `base` (N, C)."""
    # A clip without labels still counts in the probabilities.
    known = np.array([clip.labels is not None for clip in clips])
    labels = metrics.multi_hot([clip.labels or () for clip in clips], base.shape[1])
    p, everywhere = predictions, np.ones(len(clips), bool)
    use_fp32 = bool(not p.same_input.all() and np.isfinite(p.expected).all())
    return Result(
        file=str(worker.target.bundle.path(worker.target.file)),
        kind=worker.target.file.kind,
        runtime=worker.runtime,
        reference=compare(labels, p.probs, base, known, p.same_input),
        fp32=compare(labels, p.probs, p.expected, known, everywhere) if use_fp32 else None,
        clips=len(clips),
        stream_difference=p.stream_difference,
        latency_ms=1e3 * float(np.median(seconds)),
        spread=spread(seconds),
        size_mb=worker.target.file.bytes / 1e6,
        memory_mb=worker.peak_mb(),
        compared_with=_compared_with(worker.target, use_fp32),
    )


def _compared_with(target: Target, use_fp32: bool) -> str:
    if use_fp32:
        return "the reference and the fp32 file"
    if target.file.kind == "fp32" or fp32_target(target) is not None:
        return "the reference"
    has_file = any(file.kind == "fp32" for file in target.bundle.files)
    return f"the reference alone, as {'nothing here runs the fp32 file' if has_file else 'the bundle has no fp32 file'}"


def unchecked_bounds(result: Result, bounds: Bounds) -> list[str]:
    """The bounds that cannot be applied, in words: those that need the fp32 file on clips that had another input."""
    other = result.clips - result.same_input
    if other == 0 or result.fp32 is not None:
        return []
    of_clips = {"max_error": NONE, "max_noise": NONE, "min_top1": 0.0}
    named = [name for name, no_bound in of_clips.items() if getattr(bounds, name) != no_bound]
    lines = [f"{', '.join(named)} of {other} of {result.clips} clips"] if named else []
    # The loss of a single class is partly the padding's, so it is only ever compared with the fp32 file.
    return lines + (["max_class_drop"] if bounds.max_class_drop != NONE else [])


def broken_bounds(result: Result, bounds: Bounds) -> list[str]:
    """The bounds that do not hold, in words. See `Bounds` for clips that had another input."""
    allowed = bounds
    # The reference is of other input for some clips. Their loss of mAP is partly the padding's, and a single class
    # has too few clips to say more.
    if result.same_input < result.clips:
        allowed = dataclasses.replace(bounds, max_drop=bounds.max_drop + bounds.max_window_drop, max_class_drop=NONE)
    problems = accuracy_problems(result.reference, allowed)
    if result.fp32 is not None:
        problems += accuracy_problems(result.fp32, bounds, " from fp32")
    if result.stream_difference is not None:
        # Exactly equal is the promise, so the bound is 0.
        problems += over("difference in a stream", result.stream_difference, 0.0)
    problems += over("latency in ms", result.latency_ms, bounds.max_latency_ms)
    problems += over("size in MB", result.size_mb, bounds.max_size_mb)
    if result.memory_mb is not None:
        problems += over("memory in MB", result.memory_mb, bounds.max_memory_mb)
    elif bounds.max_memory_mb < math.inf:  # a bound that cannot be measured must not pass
        problems.append("memory cannot be measured on this system")
    return problems
