"""Metrics against scikit-learn, and against numbers computed by hand."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from ced_edge.errors import CedEdgeError
from ced_edge.proof.metrics import average_precision, classes_by_group, mean_ap, multi_hot, top1_by_group

N_CLASSES = 3
shapes = st.tuples(st.integers(1, 30), st.just(N_CLASSES))


@settings(deadline=None)
@given(data=st.data(), shape=shapes, ties=st.booleans())
def test_average_precision_is_scikit_learns(data: st.DataObject, shape: tuple[int, int], ties: bool) -> None:
    targets = data.draw(hnp.arrays(bool, shape))
    values = st.sampled_from([0.0, 0.25, 0.5, 1.0]) if ties else st.floats(0, 1, width=32)
    scores = data.draw(hnp.arrays(np.float32, shape, elements=values))
    ours = average_precision(targets, scores)
    for c in range(N_CLASSES):
        if targets[:, c].any():
            assert ours[c] == pytest.approx(average_precision_score(targets[:, c], scores[:, c]), abs=1e-12)
        else:
            assert math.isnan(ours[c])


def test_average_precision_by_hand() -> None:
    # Ranked: hit, miss, hit -> precision 1 at recall 1/2, 2/3 at recall 1.
    scores = np.array([[0.9], [0.5], [0.1]])
    assert average_precision(np.array([[True], [False], [True]]), scores)[0] == pytest.approx((1 + 2 / 3) / 2)
    # All equal: one threshold, the share of positives, in whatever order they come.
    assert average_precision(np.array([[True], [False], [False]]), np.zeros((3, 1)))[0] == pytest.approx(1 / 3)


def test_mean_ap_is_over_the_classes_present() -> None:
    assert mean_ap(np.array([1.0, np.nan, 0.5])) == 0.75
    assert math.isnan(mean_ap(np.array([np.nan])))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(CedEdgeError, match="NaN or infinite"):
        average_precision(np.array([[True]]), np.array([[bad]]))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="not two"):
        average_precision(np.zeros((2, 3), bool), np.zeros((2, 4)))


def test_top1_by_group_by_hand() -> None:
    groups = ["dog", "dog", "rain", "rain"]
    labels = [(0,), (0, 1), (2,), (2,)]
    classes = classes_by_group(groups, labels)
    assert classes == {"dog": (0, 1), "rain": (2,)}
    probs = np.array(
        [
            [0.1, 0.6, 0.5],  # dog by class 1, which only its neighbour is labelled with
            [0.2, 0.1, 0.3],  # predicted as rain
            [0.0, 0.0, 0.1],  # rain
            [0.4, 0.0, 0.4],  # a tie: dog comes first
        ]
    )
    assert top1_by_group(groups, classes, probs) == 0.5


def test_groups_without_labels_have_no_classes() -> None:
    assert classes_by_group(["a", "b"], [(), (3,)]) == {"b": (3,)}


def test_top1_of_nothing_is_nan() -> None:
    assert math.isnan(top1_by_group([], {}, np.zeros((0, 4))))


def test_multi_hot() -> None:
    expected: NDArray[np.bool_] = np.array([[True, False, True], [False, False, False]])
    assert (multi_hot([(0, 2), ()], 3) == expected).all()
