"""Plots are PNG files, whatever the run looked like."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from distill.evaluation.plots import plot_loss, plot_per_class_ap


def check(path: Path) -> None:
    pixels = matplotlib.image.imread(path, format="png")
    assert pixels.shape[0] > 100
    assert pixels.shape[1] > 400
    assert pixels.std() > 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("n", [0, 1, 300])
def test_loss(tmp_path: Path, n: int) -> None:
    plot_loss(tmp_path / "loss.png", [(10 * i, 1.0 / (i + 1)) for i in range(n)])
    check(tmp_path / "loss.png")


@pytest.mark.parametrize("present", [0, 1, 20, 61, 527])
def test_per_class_ap(tmp_path: Path, present: int) -> None:
    rng = np.random.default_rng(0)
    student, ensemble = rng.random((2, 527))
    student[present:] = np.nan
    plot_per_class_ap(tmp_path / "ap.png", student, ensemble)
    check(tmp_path / "ap.png")
