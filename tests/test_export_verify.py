"""The verdict on an exported file: its figures and bounds, by hand. The bounds are those of `ced-edge check`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ced_edge.proof.bounds import DEFAULTS
from ced_edge.proof.compare import compare
from ced_edge.runtime.bundle import ModelFile
from export import verify
from export.cli import table
from export.verify import Verdict, _verdict

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the converters, while they are imported


def judged(
    kind: str, error: Any, labels: list[tuple[int, ...] | None] | None = None, synthetic: bool = True
) -> Verdict:
    """The verdict on four sounds of three classes; `error` is added to the checkpoint's probabilities."""
    expected = np.array([[0.9, 0.1, 0.2], [0.1, 0.8, 0.3], [0.2, 0.1, 0.7], [0.5, 0.4, 0.1]], np.float32)
    file = ModelFile("x.onnx", kind, "", 7, "")
    return _verdict(file, np.float32(expected + error), expected, labels or [None] * 4, synthetic)


def one(error: float) -> NDArray[np.float64]:
    """An error in one of the twelve probabilities."""
    errors = np.zeros((4, 3))
    errors[3, 2] = error
    return errors


@pytest.mark.parametrize(("kind", "bound"), [(kind, b.max_error) for kind, b in DEFAULTS.items()])
def test_the_bound_of_the_largest_error(kind: str, bound: float) -> None:
    assert judged(kind, one(0.9 * bound), synthetic=False).problems == ()
    assert judged(kind, one(1.1 * bound), synthetic=False).problems == (
        f"probability error {1.1 * bound:.2g} is over {bound:g}",
    )


def without(monkeypatch: pytest.MonkeyPatch, **no_bounds: float) -> None:
    for kind, b in DEFAULTS.items():
        monkeypatch.setitem(DEFAULTS, kind, dataclasses.replace(b, **no_bounds))


@pytest.mark.parametrize(("kind", "bound"), [(kind, b.max_noise) for kind, b in DEFAULTS.items()])
def test_the_bound_of_the_noise(monkeypatch: pytest.MonkeyPatch, kind: str, bound: float) -> None:
    """An error of the same size everywhere is the RMS error; by hand, the checkpoint's RMS deviation is 0.27764."""
    without(monkeypatch, max_error=math.inf)
    assert judged(kind, 0.9 * bound * 0.27764).problems == ()
    assert judged(kind, 1.1 * bound * 0.27764).problems == (f"noise {1.1 * bound:.2g} is over {bound:g}",)
    assert judged(kind, 1.1 * bound * 0.27764, synthetic=False).problems == ()


@pytest.mark.parametrize(("kind", "bound"), [(kind, b.max_drop) for kind, b in DEFAULTS.items()])
def test_the_bound_of_the_map(monkeypatch: pytest.MonkeyPatch, kind: str, bound: float) -> None:
    """The last clip moves from the second place of its class to the third: 1 -> 5/6 in one class of three."""
    labels: list[tuple[int, ...] | None] = [(0,), (1,), (2,), (0,)]
    error = np.zeros((4, 3))
    error[2, 0] = 0.4
    without(monkeypatch, max_error=math.inf, max_noise=math.inf)
    verdict = judged(kind, error, labels)
    assert verdict.problems == (f"mAP drop 0.056 is over {bound:g}",)
    c = verdict.comparison
    assert (c.mean_ap, c.expected_mean_ap) == (pytest.approx(17 / 18), pytest.approx(1.0))
    assert judged(kind, error).problems == ()
    for share in (0.95, 1.05):
        monkeypatch.setattr(verify, "compare", with_drop(share * bound))
        assert bool(judged(kind, 0.0, labels).problems) == (share > 1)


def with_drop(drop: float) -> Any:
    return lambda *args: dataclasses.replace(compare(*args), mean_ap=1.0 - drop, expected_mean_ap=1.0)


def test_figures_of_a_verdict() -> None:
    """By hand."""
    verdict = judged("int8", one(0.06), [(0,), (1,), None, ()])
    c = verdict.comparison
    assert c.max_error == pytest.approx(0.06, abs=1e-6)
    assert c.mean_error == pytest.approx(0.06 / 12, abs=1e-6)
    assert c.noise == pytest.approx(0.06 / 12**0.5 / 0.27764, rel=1e-3)
    assert (c.top1, c.clips, verdict.bytes) == (1.0, 4, 7)
    assert (c.mean_ap, c.expected_mean_ap) == (1.0, 1.0)
    fields = verdict.to_dict()
    assert (fields["file"], fields["clips"], fields["mean_ap"]) == ("x.onnx", 4, 1.0)
    assert fields["problems"] == ["noise 0.062 is over 0.05"]
    assert judged("int8", one(0.06)).to_dict()["mean_ap"] is None
    head, row = table([verdict]).splitlines()
    assert head.split()[3:9] == ["max", "error", "mean", "error", "noise", "top-1"]
    assert row.split()[3:7] == ["6.0e-02", "5.0e-03", "0.062", "100.0%"]
    assert len(head) == len(row)
