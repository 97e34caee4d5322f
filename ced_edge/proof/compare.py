"""How the answers of a model differ from other answers to the same clips: the one comparison of check and export."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ced_edge.arrays import Bools, Float32, Float64
from ced_edge.labels import labels
from ced_edge.proof import metrics


@dataclass(frozen=True, eq=False)
class Comparison:
    """Answers of a model held against other answers to the same clips."""

    drop: float
    """mAP lost; below 0 it is gained."""
    class_drops: Float64
    """(C,) average precision lost; NaN where no clip has the class."""
    clips: int
    """Over which the probabilities are compared: those that were heard alike."""
    max_error: float
    """Largest difference of a probability; NaN without such clips, and so the following."""
    mean_error: float
    noise: float
    """RMS difference of the probabilities, as a share of what tells the clips apart: the RMS deviation of the other
    answers from their mean over the clips. Unlike the mean error it does not shrink with the probabilities."""
    top1: float
    """Share of clips with the same likeliest class."""

    @property
    def class_drop(self) -> float:
        """The largest of the classes."""
        return float(np.nanmax(self.class_drops))

    def worst(self, n: int) -> list[tuple[str, float]]:
        """The `n` classes that lost most, by name."""
        order = np.argsort(-np.nan_to_num(self.class_drops, nan=-np.inf), kind="stable")
        return [(labels()[i].name, float(d)) for i in order[:n] if not math.isnan(d := self.class_drops[i])]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "class_drops"}
        return {k: None if v != v else v for k, v in fields.items()} | {"worst": dict(self.worst(10))}


def compare(targets: Bools, probs: Float32, base: Float32, known: Bools, alike: Bools) -> Comparison:
    """`probs` (N, C) against `base` (N, C): mAP over the clips whose labels are `known` (N,), targets (N, C);
    probabilities over those heard `alike` (N,)."""
    ap, base_ap = (metrics.average_precision(targets[known], p[known]) for p in (probs, base))
    errors = np.abs(probs[alike].astype(np.float64) - base[alike])
    signal = base[alike].astype(np.float64)
    signal = signal - signal.mean(axis=0, keepdims=True) if len(signal) > 1 else signal
    same = probs[alike].argmax(axis=1) == base[alike].argmax(axis=1)
    return Comparison(
        drop=metrics.mean_ap(base_ap) - metrics.mean_ap(ap),
        class_drops=base_ap - ap,
        clips=int(alike.sum()),
        max_error=float(errors.max()) if errors.size else math.nan,
        mean_error=float(errors.mean()) if errors.size else math.nan,
        noise=_rms(errors) / max(_rms(signal), 1e-12) if errors.size else math.nan,
        top1=float(same.mean()) if same.size else math.nan,
    )


def _rms(x: Float64) -> float:
    return float(np.sqrt(np.mean(x**2)))
