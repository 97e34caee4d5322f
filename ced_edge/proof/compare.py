"""How the predictions of a model differ from the expected ones. `check` and `export` both use this comparison."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ced_edge.arrays import Bools, Float32, Float64
from ced_edge.labels import labels
from ced_edge.proof import metrics


@dataclass(frozen=True, eq=False)
class Comparison:
    """Predictions of a model beside the expected predictions for the same clips.

    A figure is NaN where there is nothing to compute it from: no clip with labels, or no clip with the same input.
    """

    mean_ap: float
    """mAP of the model."""
    expected_mean_ap: float
    """mAP of the expected predictions."""
    class_drops: Float64
    """(C,) loss of average precision per class; NaN where no clip has the class, below 0 where it rose."""
    clips: int
    """Number of clips whose probabilities are compared: those with the same input on both sides."""
    max_error: float
    """Largest difference of a probability."""
    mean_error: float
    """Mean absolute difference of the probabilities."""
    noise: float
    """RMS difference of the probabilities, divided by how far the expected ones vary between clips (their RMS
    deviation from the mean over the clips)."""
    top1: float
    """Share of clips with the same likeliest class."""
    top5: float
    """Mean share of the five likeliest expected classes that are among the model's five."""

    @property
    def drop(self) -> float:
        """Loss of mAP; below 0 where it rose."""
        return self.expected_mean_ap - self.mean_ap

    @property
    def class_drop(self) -> float:
        """Loss of average precision of the class that lost most; NaN where no clip has labels."""
        present = self.class_drops[~np.isnan(self.class_drops)]
        return float(present.max()) if len(present) else math.nan

    def worst(self, n: int) -> list[tuple[str, float]]:
        """The `n` classes that lost most: (name, loss of average precision)."""
        order = np.argsort(-np.nan_to_num(self.class_drops, nan=-np.inf), kind="stable")
        return [(labels()[i].name, float(d)) for i in order[:n] if not math.isnan(d := self.class_drops[i])]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON, with the ten classes that lost most; None in place of NaN."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "class_drops"}
        figures = {k: None if math.isnan(v) else v for k, v in {"drop": self.drop, **fields}.items()}
        return figures | {"worst": dict(self.worst(10))}


def compare(targets: Bools, probs: Float32, expected: Float32, known: Bools, same_input: Bools) -> Comparison:
    """Compare predictions `probs` (N, C) with the `expected` ones (N, C).

    mAP is computed over the clips whose labels are `known` (N,), with their `targets` (N, C). Probabilities are
    compared over the clips where `same_input` (N,) holds. Raises CedEdgeError when a prediction is not finite.
    """
    ap, expected_ap = (metrics.average_precision(targets[known], p[known]) for p in (probs, expected))
    probs, expected = probs[same_input], expected[same_input]
    errors = np.abs(probs.astype(np.float64) - expected)
    signal = expected.astype(np.float64)
    # The mean over the clips carries no information about any of them. Without it the noise is relative to what
    # tells clips apart, and does not shrink just because most probabilities are close to 0.
    signal = signal - signal.mean(axis=0, keepdims=True) if len(signal) > 1 else signal
    some = errors.size > 0
    top, expected_top = (np.argsort(-p, axis=1, kind="stable")[:, :5] for p in (probs, expected))  # (N, 5)
    return Comparison(
        mean_ap=metrics.mean_ap(ap),
        expected_mean_ap=metrics.mean_ap(expected_ap),
        class_drops=expected_ap - ap,
        clips=len(probs),
        max_error=float(errors.max()) if some else math.nan,
        mean_error=float(errors.mean()) if some else math.nan,
        noise=_rms(errors) / max(_rms(signal), 1e-12) if some else math.nan,
        top1=float(np.mean(top[:, 0] == expected_top[:, 0])) if some else math.nan,
        top5=_shared(top, expected_top) if some else math.nan,
    )


def _shared(a: NDArray[np.intp], b: NDArray[np.intp]) -> float:
    """Mean share of the classes in a row of `a` (N, n) that are in the same row of `b` (N, n), in any order."""
    return float(np.mean([len(set(x) & set(y)) / len(x) for x, y in zip(a.tolist(), b.tolist(), strict=True)]))


def _rms(x: Float64) -> float:
    return float(np.sqrt(np.mean(x**2)))
