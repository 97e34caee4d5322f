"""Plots of a run, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ced_edge.arrays import Float64
from ced_edge.figures import new_figure
from ced_edge.files import atomic_path
from ced_edge.labels import labels

MAX_NAMED = 60
"""Most classes that are drawn by name, one line each."""
STUDENT, ENSEMBLE = "tab:blue", "tab:orange"


def plot_loss(path: Path, points: Sequence[tuple[int, float]]) -> None:
    """Draw (step, loss) points and their running mean over a twentieth of them."""
    figure = new_figure(8.0, 4.5)
    axes = figure.add_subplot()
    if points:
        steps, losses = np.array(points, np.float64).T
        width = max(1, len(points) // 20)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(steps, losses, color=STUDENT, alpha=0.3, linewidth=0.8)
        axes.plot(steps[width - 1 :], smooth, color=STUDENT, linewidth=1.6)
    axes.set(xlabel="step", ylabel="loss", title="Training loss")
    axes.grid(alpha=0.3)
    _save(figure, path)


def plot_per_class_ap(path: Path, student: Float64, ensemble: Float64) -> None:
    """Draw average precision per class, student against ensemble, both (C,); classes that are NaN are left out.

    Few classes get a line with a name each; many become a cloud around the diagonal, the widest gaps named.
    """
    present = np.flatnonzero(~np.isnan(student) & ~np.isnan(ensemble))
    if len(present) <= MAX_NAMED:
        figure = _named(present[np.argsort(ensemble[present], kind="stable")], student, ensemble)
    else:
        figure = _cloud(present, student, ensemble)
    _save(figure, path)


def _named(order: NDArray[np.intp], student: Float64, ensemble: Float64) -> Any:
    figure = new_figure(8.0, 1.5 + 0.25 * len(order))
    axes = figure.add_subplot()
    y = np.arange(len(order))
    axes.hlines(y, student[order], ensemble[order], color="0.7")
    axes.scatter(ensemble[order], y, color=ENSEMBLE, label=f"ensemble (mAP {_mean(ensemble[order])})", zorder=2)
    axes.scatter(student[order], y, color=STUDENT, label=f"student (mAP {_mean(student[order])})", zorder=3)
    axes.set_yticks(y, [labels()[i].name for i in order], fontsize=8)
    axes.set(xlabel="average precision", xlim=(-0.02, 1.02), title="Average precision per class")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    return figure


def _cloud(present: NDArray[np.intp], student: Float64, ensemble: Float64) -> Any:
    figure = new_figure(7.0, 7.0)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.scatter(ensemble[present], student[present], s=12, alpha=0.6, color=STUDENT)
    for i in present[np.argsort(-np.abs(student - ensemble)[present], kind="stable")][:10]:
        axes.annotate(labels()[i].name, (ensemble[i], student[i]), fontsize=7)
    axes.set(
        xlabel=f"ensemble (mAP {_mean(ensemble[present])})",
        ylabel=f"student (mAP {_mean(student[present])})",
        title="Average precision per class",
    )
    axes.grid(alpha=0.3)
    return figure


def _mean(values: Float64) -> str:
    return f"{values.mean():.3f}" if len(values) else "none"


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as p:
        figure.savefig(p, format="png", dpi=120)
