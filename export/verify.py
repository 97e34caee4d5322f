"""Every conversion ends here: what a bundle's files answer against what the checkpoint does, through the runtime."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ced_edge.arrays import Float32
from ced_edge.audio.base import AudioError
from ced_edge.audio.clips import Clip, load_clip
from ced_edge.errors import InputError
from ced_edge.network.ced import CED, predict
from ced_edge.proof.compare import compare
from ced_edge.proof.metrics import average_precision, mean_ap, multi_hot
from ced_edge.runtime.bundle import Bundle, ModelFile
from ced_edge.runtime.tagger import Tagger
from export.sounds import fill, synthetic_waves

log = logging.getLogger(__name__)

MAX_ERROR = {"fp32": 1e-4, "int8": 0.1, "int8-static": 0.15}
"""Largest difference of a probability. For int8 it is there to catch what is broken; its bounds are noise and mAP."""
MAX_NOISE = {"fp32": 1e-3, "int8": 0.05, "int8-static": 0.1}
"""Largest noise (see `proof.compare.Comparison`) on the synthetic sounds. On clips there is no bound, as they may be
so much alike that next to nothing tells them apart.

Measured on a student and on models with random weights: fp32 below 2e-4, int8 0.007 to 0.028, int8-static 0.011 to
0.056; with weights of 4 bits, whose largest error may well be below 0.1, 0.104 to 0.45.
"""
MAX_DROP = {"fp32": 1e-3, "int8": 0.005, "int8-static": 0.01}
"""Largest loss of mAP, absolute, where there are labels."""


@dataclass(frozen=True)
class Verdict:
    """How one model file compares with the checkpoint on N clips."""

    file: str
    bytes: int
    clips: int
    max_error: float
    """Largest difference of any probability."""
    mean_error: float
    """Mean difference of all probabilities."""
    noise: float
    """RMS difference, as a share of what tells the clips apart: see `ced_edge.proof.compare.Comparison`."""
    top1: float
    """Share of clips with the same likeliest class."""
    top5: float
    """Mean share of the checkpoint's five likeliest classes that are among the file's."""
    mean_ap: float | None
    """Of the file; None without labels."""
    checkpoint_mean_ap: float | None
    """Of the checkpoint on the same samples."""
    problems: tuple[str, ...]
    """The bounds that do not hold."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)


def verify(bundle: Bundle, model: CED, clips: Sequence[Clip] = ()) -> list[Verdict]:
    """Compare each file of `bundle` with `model`: on synthetic sounds, or on the first window of each clip.

    Both hear the same samples: where a file has a fixed window, the checkpoint hears the short clip repeated too.
    Clips that cannot be read are left out and counted aloud. Raises InputError when none can.
    """
    taggers = [Tagger(bundle, file=file.name) for file in bundle.files]
    fixed = [tagger.backend.inputs[0].shape[-1] > 0 for tagger in taggers]
    labels: list[tuple[int, ...] | None] = []
    heard: list[tuple[list[Float32], list[Float32]]] = []
    for wave, tags in _sounds(bundle, clips):
        inputs = {False: wave, True: fill(wave, bundle.window_samples)}
        answers = {is_fixed: _answer(model, inputs[is_fixed]) for is_fixed in set(fixed)}
        heard.append(([tagger.predict_window(wave) for tagger in taggers], [answers[is_fixed] for is_fixed in fixed]))
        labels.append(tags)
    probs, expected = (np.array(answers).swapaxes(0, 1) for answers in zip(*heard, strict=True))  # (files, clips, C)
    return [_verdict(*of_one, labels, not clips) for of_one in zip(bundle.files, probs, expected, strict=True)]


def _sounds(bundle: Bundle, clips: Sequence[Clip]) -> Iterator[tuple[Float32, tuple[int, ...] | None]]:
    """Samples of one window at most, and labels."""
    rate_hz, window = bundle.spec.frontend.rate_hz, bundle.window_samples
    if not clips:
        yield from ((wave, None) for wave in synthetic_waves(window, rate_hz))
        return
    errors: list[AudioError] = []
    for clip in clips:
        try:
            wave = load_clip(clip, rate_hz, bundle.window_s)
        except AudioError as e:
            errors.append(e)
            continue
        yield wave, clip.labels
    if len(errors) == len(clips):
        raise InputError(f"no clip can be read: {errors[0]}")
    if errors:
        log.warning("%d of %d clips left out: %s", len(errors), len(clips), errors[0])


def _answer(model: CED, wave: Float32) -> Float32:
    with torch.inference_mode():
        probs: Float32 = predict(model, torch.from_numpy(wave.copy())[None])[0].numpy()
    return probs


def _verdict(
    file: ModelFile, probs: Float32, expected: Float32, labels: Sequence[tuple[int, ...] | None], synthetic: bool
) -> Verdict:
    """`probs` (N, C) of a file against `expected` (N, C); `synthetic` sounds are those whose noise has a bound."""
    top, wanted = np.argsort(-probs, axis=1), np.argsort(-expected, axis=1)
    shared = [len(set(a[:5]) & set(b[:5])) / 5 for a, b in zip(top, wanted, strict=True)]
    targets = multi_hot([tags or () for tags in labels], probs.shape[1])
    known = np.array([tags is not None for tags in labels])
    c = compare(targets, probs, expected, known, np.ones(len(probs), bool))
    has_ap = not math.isnan(c.drop)
    file_ap = mean_ap(average_precision(targets[known], probs[known]))
    problems = []
    if c.max_error > MAX_ERROR[file.kind]:
        problems.append(f"a probability is off by {c.max_error:.2g}, more than {MAX_ERROR[file.kind]:g}")
    if synthetic and c.noise > MAX_NOISE[file.kind]:
        problems.append(f"noise in the probabilities is {c.noise:.2g}, more than {MAX_NOISE[file.kind]:g}")
    if has_ap and c.drop > MAX_DROP[file.kind]:
        problems.append(f"mAP is {c.drop:.4f} below the checkpoint's, more than {MAX_DROP[file.kind]:g}")
    return Verdict(
        file=file.name,
        bytes=file.bytes,
        clips=len(probs),
        max_error=c.max_error,
        mean_error=c.mean_error,
        noise=c.noise,
        top1=c.top1,
        top5=float(np.mean(shared)),
        mean_ap=file_ap if has_ap else None,
        checkpoint_mean_ap=file_ap + c.drop if has_ap else None,
        problems=tuple(problems),
    )
