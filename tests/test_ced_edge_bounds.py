"""The one comparison and the one table of bounds that `check` and `export` share, by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from ced_edge.errors import InputError
from ced_edge.labels import labels
from ced_edge.proof.bounds import DEFAULTS, Bounds, accuracy_problems, bounds, read_bounds
from ced_edge.proof.check import Result, broken_bounds
from ced_edge.proof.compare import Comparison, compare


def comparison(drop: float = 0.0, class_drop: float = 0.0, clips: int = 9, error: float = 0.0) -> Comparison:
    drops = np.full(527, np.nan)
    drops[[3, 5]] = -0.1, class_drop
    figures = (error, error / 2, 1.5 * error, 1 - error, 1.0) if clips else (math.nan,) * 5
    return Comparison(0.5 - drop, 0.5, drops, clips, *figures)


def result(reference: Comparison, fp32: Comparison | None = None) -> Result:
    return Result("b/x.onnx", "int8", "r 1", reference, fp32, 9, None, 20.0, 0.1, 6.0, 90.0)


TIGHT = Bounds(0.01, 0.05, 0.1, 0.2, 0.95, 0.02, 30, 7, 100)


@pytest.mark.parametrize(
    ("measured", "problems"),
    [
        (result(comparison()), []),
        (result(comparison(0.009, 0.05, error=0.04)), []),
        (result(comparison(0.02)), ["mAP drop 0.02 is over 0.01"]),
        (result(comparison(0.0, 0.06)), [f"drop of {labels()[5].name} 0.06 is over 0.05"]),
        (
            result(comparison(error=0.2)),
            [
                "probability error 0.2 is over 0.1",
                "noise 0.3 is over 0.2",
                "top-1 agreement 0.800 is below 0.95",
            ],
        ),
        (result(comparison(math.nan)), ["mAP drop nan is over 0.01"]),
        # Clips with another input: neither classes nor probabilities are compared with the reference, only the mAP.
        (result(comparison(0.029, 0.5, clips=0)), []),
        (result(comparison(0.04, clips=0)), ["mAP drop 0.04 is over 0.03"]),
        (result(comparison(0.029, clips=0), comparison(0.02)), ["mAP drop from fp32 0.02 is over 0.01"]),
        (
            result(comparison(0.029, clips=8), comparison(0.0, error=0.12)),
            ["probability error from fp32 0.12 is over 0.1", "top-1 agreement from fp32 0.880 is below 0.95"],
        ),
        (dataclasses.replace(result(comparison()), stream_difference=0.0), []),
        (dataclasses.replace(result(comparison()), stream_difference=1e-9), ["difference in a stream 1e-09 is over 0"]),
        (dataclasses.replace(result(comparison()), latency_ms=31.0), ["latency in ms 31 is over 30"]),
        (dataclasses.replace(result(comparison()), size_mb=7.5), ["size in MB 7.5 is over 7"]),
        (dataclasses.replace(result(comparison()), memory_mb=101.0), ["memory in MB 1e+02 is over 100"]),
        (dataclasses.replace(result(comparison()), memory_mb=None), ["memory cannot be measured on this system"]),
    ],
)
def test_broken_bounds(measured: Result, problems: list[str]) -> None:
    assert broken_bounds(measured, TIGHT) == problems


def test_compare_by_hand() -> None:
    truth = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], bool)
    base = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]], np.float32)
    probs = np.array([[0.9, 0.1, 0.0], [0.8, 0.7, 0.0], [0.7, 0.3, 0.0]], np.float32)
    everywhere, known = np.ones(3, bool), np.array([True, True, True])
    c = compare(truth, probs, base, known, everywhere)
    # Class 0 now ranks clips 0, 1, 2: precision 1 and 2/3 at its two hits.
    assert c.drop == pytest.approx((1 - 5 / 6) / 2)
    np.testing.assert_allclose(c.class_drops, [1 / 6, 0, np.nan])
    assert (c.max_error, c.mean_error) == (pytest.approx(0.6), pytest.approx(0.7 / 9))
    assert (c.mean_ap, c.expected_mean_ap) == (pytest.approx(11 / 12), pytest.approx(1))
    assert c.worst(1) == [(labels()[0].name, pytest.approx(1 / 6))]
    assert c.top1 == pytest.approx(2 / 3)
    assert c.top5 == 1  # of three classes, all are among the first five
    c = compare(truth, probs, base, np.array([True, False, True]), np.array([True, False, False]))
    assert (c.drop, c.clips, c.max_error, c.top1) == (0, 1, 0, 1)
    c = compare(truth, probs, base, known, ~everywhere)
    assert (c.clips, math.isnan(c.max_error), math.isnan(c.top1)) == (0, True, True)
    assert c.to_dict()["max_error"] is None
    c = compare(truth, probs, base, ~everywhere, everywhere)
    assert (math.isnan(c.drop), math.isnan(c.class_drop), c.worst(3)) == (True, True, [])
    assert c.to_dict()["mean_ap"] is None


def test_top5_by_hand() -> None:
    expected = np.linspace(1, 0, 8, dtype=np.float32)[None].repeat(
        2, axis=0
    )  # the first five classes are the likeliest
    probs = expected.copy()
    probs[1, [3, 4]] = 0.0  # two of them leave, and the first class stays
    probs[1, 7] = -0.1
    c = compare(np.zeros((2, 8), bool), probs, expected, np.zeros(2, bool), np.ones(2, bool))
    assert (c.top1, c.top5) == (1.0, (1.0 + 3 / 5) / 2)


def test_the_defaults_tell_four_bits_from_eight() -> None:
    """Figures that were measured, see bounds.py. No probability of 4-bit weights need be off by 0.1."""

    def noise(x: float) -> Comparison:
        return dataclasses.replace(comparison(), noise=x)

    for kind, most, four_bits in (("fp32", 2e-4, 0.007), ("int8", 0.028, 0.104), ("int8-static", 0.056, 0.104)):
        assert accuracy_problems(noise(most), DEFAULTS[kind]) == []
        assert accuracy_problems(noise(four_bits), DEFAULTS[kind]) == [
            f"noise {four_bits:.2g} is over {DEFAULTS[kind].max_noise:g}"
        ]


def test_a_bound_of_infinity_is_none_even_without_a_figure() -> None:
    nothing = dataclasses.replace(comparison(math.nan, math.nan), class_drops=np.full(527, np.nan))
    assert accuracy_problems(nothing, DEFAULTS["int8"].only("max_error", "max_noise")) == []
    assert accuracy_problems(nothing, DEFAULTS["int8"]) == [
        "mAP drop nan is over 0.002",
        "drop of every class nan is over 0.05",
    ]


def test_bounds_come_from_flags_then_kinds_then_the_table(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.ced-edge.check]\nmax_latency_ms = 40\nmax_drop = 0.1\n[tool.ced-edge.check.int8]\nmax_drop = 0.2\n"
    )
    limits = read_bounds(tmp_path, {"max_latency_ms": None, "max_error": 0.5})
    assert {k: (b.max_drop, b.max_latency_ms, b.max_error) for k, b in limits.items()} == {
        "fp32": (0.1, 40, 0.5),
        "int8": (0.2, 40, 0.5),
        "int8-static": (0.1, 40, 0.5),
    }
    assert limits["int8"].max_noise == DEFAULTS["int8"].max_noise
    assert read_bounds(tmp_path, {"max_drop": math.inf})["int8"].max_drop == math.inf
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert read_bounds(tmp_path, {}) == DEFAULTS == read_bounds(tmp_path / "nowhere", {}) == bounds({}, {})


def test_all_problems_of_the_bounds_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(
        "[tool.ced-edge.check]\nmax_drops = 1\nmax_error = 'low'\nmax_size_mb = true\nint8 = 3\n"
        "[tool.ced-edge.check.fp32]\nspeed = 1\n"
    )
    with pytest.raises(InputError) as e:
        read_bounds(tmp_path, {})
    for message in (
        str(path),
        "unknown key max_drops",
        "there are max_drop, ",
        "max_error must be a number, not 'low'",
    ):
        assert message in str(e.value)
    for message in ("max_size_mb must be a number, not True", "int8 must be a table, not 3", "unknown key fp32.speed"):
        assert message in str(e.value)
    with pytest.raises(InputError, match="max_drop must be a number of at least 0, not -1") as e:
        bounds({"int8": {"min_top1": 2}}, {"max_drop": -1.0, "max_error": math.nan})
    assert "max_error must be a number of at least 0, not nan" in str(e.value)
    assert "min_top1 must be at most 1, not 2" in str(e.value)
    assert str(e.value).count("max_drop") == 1
    path.write_text("[tool]\nced-edge = 1\n")
    with pytest.raises(InputError, match="must be a table"):
        read_bounds(tmp_path, {})


def test_the_guide_shows_the_defaults() -> None:
    """docs/guide.md repeats the table for readers."""
    text = (Path(__file__).resolve().parents[1] / "docs" / "guide.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    shown = {row[0]: [float(cell) for cell in row[1:6]] for row in rows if row[0] in DEFAULTS}
    names = ("max_drop", "max_class_drop", "max_error", "max_noise", "min_top1")
    assert shown == {kind: [getattr(b, name) for name in names] for kind, b in DEFAULTS.items()}
