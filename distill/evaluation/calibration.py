"""What probabilities mean: the calibration error, one temperature that lowers it, and a threshold per class."""

from __future__ import annotations

import numpy as np

from ced_edge.arrays import Bools, Float32, Float64
from ced_edge.labels import labels

BINS = 15
TEMPERATURES = np.geomspace(0.5, 2.0, 57)
THRESHOLDS = np.arange(0.05, 0.951, 0.05)
FEWEST_VIEWS = 10
"""A class that the ensemble finds in fewer views gets no threshold of its own: it would be chance."""


def calibration_error(probs: Float32 | Float64, targets: Bools) -> float:
    """Expected calibration error of (N, C) probabilities against what is there, over all pairs of clip and class.

    The probabilities are put into 15 bins of equal width. The error is the mean, over pairs, of the distance between a
    bin's mean probability and the share of its pairs that are there (Guo et al., arXiv 1706.04599, for one class each).
    """
    p, there = np.ravel(probs).astype(np.float64), np.ravel(targets).astype(np.float64)
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    sums = [np.bincount(bins, weights=values, minlength=BINS) for values in (p, there)]
    return float(np.abs(sums[0] - sums[1]).sum() / len(p))


def with_temperature(probs: Float32, temperature: float) -> Float64:
    """Probabilities (N, C) whose logits are divided by `temperature`."""
    p = np.clip(probs.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(1.0 / (1.0 + (1.0 / p - 1.0) ** (1.0 / temperature)))


def best_temperature(probs: Float32, target: Float32) -> float:
    """The temperature at which (N, C) probabilities have the lowest cross-entropy against the ensemble's (N, C)."""

    def cross_entropy(temperature: float) -> float:
        p = with_temperature(probs, temperature)
        return float(-np.mean(target * np.log(p) + (1.0 - target) * np.log1p(-p)))

    return float(min(TEMPERATURES, key=cross_entropy))


def thresholds(probs: Float32 | Float64, present: Bools) -> dict[str, float]:
    """Class -> the threshold at which (N, C) probabilities have the best F1 against what the ensemble finds.

    The highest of equally good ones, in steps of 0.05. Classes that the ensemble finds in fewer than 10 views are
    left out.
    """
    chosen = {}
    for label, p, there in zip(labels(), probs.T, present.T, strict=True):
        if there.sum() >= FEWEST_VIEWS:
            found = p[None] >= THRESHOLDS[:, None]  # (thresholds, N)
            f1 = 2.0 * (found & there).sum(axis=1) / (found.sum(axis=1) + there.sum())
            chosen[label.name] = round(float(THRESHOLDS[np.flatnonzero(f1 == f1.max())[-1]]), 2)
    return chosen
