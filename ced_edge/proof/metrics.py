"""How good a tagger is: average precision per class, its mean, and top-1 by group, in numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ced_edge.arrays import Bools, Float64
from ced_edge.errors import CedEdgeError


def average_precision(targets: Bools, scores: NDArray[np.floating]) -> Float64:
    """Average precision of each class: targets (N, C), scores (N, C) of any finite scale -> (C,) in [0, 1].

    Clips with equal scores count as one threshold, as in scikit-learn's average_precision_score. A class without
    a positive has no average precision: NaN. Raises CedEdgeError when a score is not finite.
    """
    if targets.shape != scores.shape or targets.ndim != 2:
        raise ValueError(f"targets {targets.shape} and scores {scores.shape} are not two (N, C) arrays")
    if not np.isfinite(scores).all():
        raise CedEdgeError("a score is NaN or infinite: the model that gave it is broken")
    return np.array([_one_class(t, s) for t, s in zip(targets.T.astype(bool), scores.T, strict=True)], np.float64)


def _one_class(targets: Bools, scores: NDArray[np.floating]) -> float:
    if not targets.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    hits = np.cumsum(targets[order])  # (N,)
    last = np.append(scores[1:] != scores[:-1], True)  # the last clip of each run of equal scores
    precision = hits[last] / (np.flatnonzero(last) + 1)
    recall_gain = np.diff(hits[last], prepend=0) / hits[-1]
    return float(np.sum(recall_gain * precision))


def mean_ap(per_class: Float64) -> float:
    """Mean of average precisions (C,) over the classes present (not NaN); NaN when there is none."""
    present = per_class[~np.isnan(per_class)]
    return float(present.mean()) if len(present) else float("nan")


def multi_hot(labels: Sequence[Iterable[int]], n_classes: int) -> Bools:
    """Class indices per clip -> targets (N, n_classes)."""
    targets = np.zeros((len(labels), n_classes), bool)
    for row, indices in zip(targets, labels, strict=True):
        row[list(indices)] = True
    return targets


def classes_by_group(groups: Sequence[str], labels: Sequence[Iterable[int]]) -> dict[str, tuple[int, ...]]:
    """Group -> its classes, the union of the labels of its clips; groups without a label are left out."""
    union: dict[str, set[int]] = {}
    for group, indices in zip(groups, labels, strict=True):
        union.setdefault(group, set()).update(indices)
    return {group: tuple(sorted(union[group])) for group in sorted(union) if union[group]}


def top1_by_group(
    groups: Sequence[str], group_classes: Mapping[str, Sequence[int]], probs: NDArray[np.floating]
) -> float:
    """Share of clips, probs (N, C), whose own group scores highest; a group's score is the max over its classes.

    Of groups with equal scores the first in sorted order wins. Clips of a group without classes are misses.
    """
    if not group_classes or not groups:
        return float("nan")
    names = sorted(group_classes)
    scores = np.stack([probs[:, list(group_classes[name])].max(axis=1) for name in names], axis=1)  # (N, G)
    return float(np.mean([names[best] == group for best, group in zip(scores.argmax(axis=1), groups, strict=True)]))
