"""Plots: the curves, labels, order and values that are drawn; and a PNG file, whatever the run looked like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from ced_edge.labels import labels
from distill.evaluation import plots
from distill.evaluation.plots import plot_loss, plot_per_class_ap


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every figure that is saved from now on."""
    found: list[Any] = []
    save = plots._save

    def note(figure: Any, path: Path) -> None:
        found.extend(figure.axes)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", note)
    return found


def is_png(path: Path) -> bool:
    pixels = matplotlib.image.imread(path, format="png")
    return pixels.shape[0] > 100 and pixels.shape[1] > 400 and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("n", [0, 1, 300])
def test_loss_and_its_running_mean(tmp_path: Path, drawn: list[Any], n: int) -> None:
    losses = [1.0 / (i + 1) for i in range(n)]
    plot_loss(tmp_path / "loss.png", [(10 * i, loss) for i, loss in enumerate(losses)])
    assert is_png(tmp_path / "loss.png")
    (axes,) = drawn
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("step", "loss", "Training loss")
    if n == 0:
        assert not axes.lines
        return
    raw, smooth = axes.lines
    np.testing.assert_allclose(raw.get_xydata(), [[10 * i, loss] for i, loss in enumerate(losses)])
    width = max(1, n // 20)
    means = [sum(losses[i - width + 1 : i + 1]) / width for i in range(width - 1, n)]
    np.testing.assert_allclose(smooth.get_xydata(), [[10 * (i + width - 1), m] for i, m in enumerate(means)])


def test_few_classes_are_named_in_order_of_the_ensemble(tmp_path: Path, drawn: list[Any]) -> None:
    student, ensemble = np.full((2, 527), np.nan)
    for i, (a, b) in {0: (0.2, 0.9), 74: (0.8, 0.5), 300: (0.4, 0.7)}.items():
        student[i], ensemble[i] = a, b
    ensemble[5] = 0.3  # a class that the student's clips do not have
    plot_per_class_ap(tmp_path / "ap.png", student, ensemble)
    assert is_png(tmp_path / "ap.png")
    (axes,) = drawn
    assert [t.get_text() for t in axes.get_yticklabels()] == [labels()[i].name for i in (74, 300, 0)]
    of_ensemble, of_student = (c for c in axes.collections if len(c.get_offsets()) == 3)
    np.testing.assert_allclose(of_ensemble.get_offsets(), [[0.5, 0], [0.7, 1], [0.9, 2]])
    np.testing.assert_allclose(of_student.get_offsets(), [[0.8, 0], [0.4, 1], [0.2, 2]])
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert legend == ["ensemble (mAP 0.700)", "student (mAP 0.467)"]


def test_many_classes_are_a_cloud_with_the_widest_gaps_named(tmp_path: Path, drawn: list[Any]) -> None:
    ensemble = np.linspace(0.1, 0.9, 527)
    student = ensemble - 0.01
    student[[3, 100, 526]] -= [0.05, 0.09, 0.07]
    plot_per_class_ap(tmp_path / "ap.png", student, ensemble)
    assert is_png(tmp_path / "ap.png")
    (axes,) = drawn
    np.testing.assert_allclose(axes.collections[0].get_offsets(), np.stack([ensemble, student], axis=1))
    assert [t.get_text() for t in axes.texts[:3]] == [labels()[i].name for i in (100, 526, 3)]
    assert len(axes.texts) == 10
    assert axes.get_xlabel() == "ensemble (mAP 0.500)"


@pytest.mark.parametrize("present", [0, 1, 20, 61])
def test_any_number_of_classes_gives_a_file(tmp_path: Path, present: int) -> None:
    student, ensemble = np.random.default_rng(0).random((2, 527))
    student[present:] = np.nan
    plot_per_class_ap(tmp_path / "ap.png", student, ensemble)
    assert is_png(tmp_path / "ap.png")
