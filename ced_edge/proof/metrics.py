"""Accuracy of a tagger: average precision per class, its mean, and top-1 by group. Needs numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ced_edge.arrays import Bools, Float64
from ced_edge.errors import CedEdgeError


def average_precision(targets: Bools, scores: NDArray[np.floating]) -> Float64:
    """Average precision of each class: targets (N, C), scores (N, C) of any finite scale -> (C,) in [0, 1].

    Clips with equal scores share one threshold, as in scikit-learn's average_precision_score. A class that no clip
    has gets NaN. Raises CedEdgeError when a score is not finite.
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
    # A threshold takes all clips of equal score or none of them, so precision is read at the last clip of each run.
    # Reading it at every clip would make the result depend on the order in which equal clips happen to stand.
    last = np.append(scores[1:] != scores[:-1], True)
    precision = hits[last] / (np.flatnonzero(last) + 1)
    recall_gain = np.diff(hits[last], prepend=0) / hits[-1]
    return float(np.sum(recall_gain * precision))


def mean_ap(per_class: Float64) -> float:
    """Mean of average precisions (C,) over the classes that are not NaN; NaN when all are."""
    present = per_class[~np.isnan(per_class)]
    return float(present.mean()) if len(present) else float("nan")


def multi_hot(labels: Sequence[Iterable[int]], n_classes: int) -> Bools:
    """Class indices per clip -> targets (N, n_classes)."""
    targets = np.zeros((len(labels), n_classes), bool)
    for row, indices in zip(targets, labels, strict=True):
        row[list(indices)] = True
    return targets


def classes_by_group(groups: Sequence[str], labels: Sequence[Iterable[int]]) -> dict[str, tuple[int, ...]]:
    """Classes of each group: the union of its clips' labels. Groups without any label are left out."""
    union: dict[str, set[int]] = {}
    for group, indices in zip(groups, labels, strict=True):
        union.setdefault(group, set()).update(indices)
    return {group: tuple(sorted(union[group])) for group in sorted(union) if union[group]}


def top1_by_group(
    groups: Sequence[str], group_classes: Mapping[str, Sequence[int]], probs: NDArray[np.floating]
) -> float:
    """Share of the clips, probs (N, C), for which their own group has the highest score. NaN without clips.

    The score of a group is the largest probability of its classes. Between equal scores the group that sorts first
    wins. A clip whose group has no classes counts as wrong.
    """
    if not group_classes or not groups:
        return float("nan")
    names = sorted(group_classes)
    scores = np.stack([probs[:, list(group_classes[name])].max(axis=1) for name in names], axis=1)  # (N, G)
    return float(np.mean([names[best] == group for best, group in zip(scores.argmax(axis=1), groups, strict=True)]))
