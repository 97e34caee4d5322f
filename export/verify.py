"""Verification, the last step of every export: predictions of the bundle's files beside those of the checkpoint."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ced_edge.arrays import Float32
from ced_edge.audio.base import AudioError
from ced_edge.audio.clips import Clip, load_clip
from ced_edge.errors import InputError
from ced_edge.network.ced import CED, predict
from ced_edge.proof.bounds import DEFAULTS, accuracy_problems
from ced_edge.proof.compare import Comparison, compare
from ced_edge.proof.metrics import multi_hot
from ced_edge.runtime.bundle import Bundle, ModelFile
from ced_edge.runtime.tagger import Tagger
from export.sounds import fill, synthetic_waves

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """One model file beside the checkpoint, on one set of clips."""

    file: str
    bytes: int
    comparison: Comparison
    """The file's predictions against the checkpoint's on the same samples."""
    problems: tuple[str, ...]
    """Bounds that do not hold, in words."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        compared = self.comparison.to_dict()
        return {"file": self.file, "bytes": self.bytes, **compared, "problems": list(self.problems)}


def verify(bundle: Bundle, model: CED, clips: Sequence[Clip] = ()) -> list[Verdict]:
    """Compare each file of `bundle` with `model`: on synthetic sounds, or on the first window of each clip.

    Both get the same samples: for a file with a fixed window, the checkpoint gets the short clip repeated too. Warns
    of clips that cannot be read, and leaves them out. Raises InputError when no clip can be read.
    """
    taggers = [Tagger(bundle, file=file.name) for file in bundle.files]
    fixed = [tagger.backend.inputs[0].shape[-1] > 0 for tagger in taggers]
    labels: list[tuple[int, ...] | None] = []
    predictions: list[tuple[list[Float32], list[Float32]]] = []  # of each clip: by the files, and by the checkpoint
    for wave, tags in _sounds(bundle, clips):
        inputs = {False: wave, True: fill(wave, bundle.window_samples)}
        right = {is_fixed: _predict(model, inputs[is_fixed]) for is_fixed in set(fixed)}
        by_files = [tagger.predict_window(wave) for tagger in taggers]
        predictions.append((by_files, [right[is_fixed] for is_fixed in fixed]))
        labels.append(tags)
    probs, expected = (np.array(p).swapaxes(0, 1) for p in zip(*predictions, strict=True))  # (files, clips, C)
    return [
        _verdict(file, p, e, labels, synthetic=not clips)
        for file, p, e in zip(bundle.files, probs, expected, strict=True)
    ]


def _sounds(bundle: Bundle, clips: Sequence[Clip]) -> Iterator[tuple[Float32, tuple[int, ...] | None]]:
    """At most one window of samples (n,) of each sound, and its labels; of synthetic sounds without clips."""
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


def _predict(model: CED, wave: Float32) -> Float32:
    """Samples (n,) -> the checkpoint's probabilities (C,)."""
    with torch.inference_mode():
        probs: Float32 = predict(model, torch.from_numpy(wave.copy())[None])[0].numpy()
    return probs


def _verdict(
    file: ModelFile, probs: Float32, expected: Float32, labels: Sequence[tuple[int, ...] | None], synthetic: bool
) -> Verdict:
    """Compare `probs` (N, C) of a file with `expected` (N, C), and apply the bounds that fit these sounds."""
    targets = multi_hot([tags or () for tags in labels], probs.shape[1])
    known = np.array([tags is not None for tags in labels])
    comparison = compare(targets, probs, expected, known, np.ones(len(probs), bool))
    # Noise is bounded on the synthetic sounds alone. They differ widely. The clips of --data may be so similar that
    # the expected predictions hardly vary, and any error is large compared with that.
    names = ["max_error"] + ["max_noise"] * synthetic + ["max_drop"] * (not math.isnan(comparison.drop))
    problems = accuracy_problems(comparison, DEFAULTS[file.kind].only(*names))
    return Verdict(file.name, file.bytes, comparison, tuple(problems))
