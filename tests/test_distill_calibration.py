"""Calibration: the error by hand, a temperature that is found again, and thresholds with the best F1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from ced_edge.labels import labels
from distill.evaluation.calibration import (
    FEWEST_VIEWS,
    THRESHOLDS,
    best_temperature,
    calibration_error,
    thresholds,
    with_temperature,
)


def test_the_error_by_hand() -> None:
    """Two pairs at 0.9 of which one is there, two at 0.1 of which none is: (2 * |0.9 - 0.5| + 2 * 0.1) / 4."""
    probs = np.array([[0.9, 0.1], [0.9, 0.1]])
    assert calibration_error(probs, np.array([[True, False], [False, False]])) == pytest.approx(0.25)
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([[True, False]])) == 0.0


def test_probabilities_that_come_true_have_no_error() -> None:
    rng = np.random.default_rng(0)
    probs = rng.uniform(0, 1, (2_000, 100))
    assert calibration_error(probs, rng.uniform(0, 1, probs.shape) < probs) < 0.005


@given(st.floats(0.5, 2.0), st.floats(0.001, 0.999))
def test_a_temperature_divides_the_logit(temperature: float, p: float) -> None:
    got = float(with_temperature(np.array([[p]], np.float32), temperature)[0, 0])
    q = float(np.float32(p))
    assert np.log(got / (1 - got)) == pytest.approx(np.log(q / (1 - q)) / temperature, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_the_temperature_of_a_distorted_model_is_found(temperature: float) -> None:
    target = np.random.default_rng(0).uniform(0.01, 0.99, (300, 20)).astype(np.float32)
    distorted = with_temperature(target, 1.0 / temperature).astype(np.float32)
    assert best_temperature(distorted, target) == pytest.approx(temperature, rel=0.02)


def test_thresholds_have_the_best_f1() -> None:
    rng = np.random.default_rng(2)
    present = rng.uniform(size=(200, 527)) < 0.1
    probs = np.clip(0.3 * present + rng.uniform(0, 0.6, present.shape), 0, 1)
    present[:, 1] = False
    present[: FEWEST_VIEWS - 1, 1] = True  # one view too few
    chosen = thresholds(probs, present)
    assert labels()[1].name not in chosen
    assert len(chosen) > 400
    for i in (0, 2, 100, 526):
        if (name := labels()[i].name) in chosen:
            scores = [f1_score(present[:, i], probs[:, i] >= t) for t in THRESHOLDS]
            best = max(t for t, score in zip(THRESHOLDS, scores, strict=True) if score == max(scores))
            assert chosen[name] == pytest.approx(best)
