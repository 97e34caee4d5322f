"""The report of `ced-edge check`: its tables, and what its plots draw."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="no matplotlib: pip install matplotlib")
from matplotlib.colors import to_rgba

from ced_edge.labels import labels
from ced_edge.proof import report
from ced_edge.proof.check import Result
from ced_edge.proof.compare import Comparison
from ced_edge.proof.reference import Reference

DROPS = {3: 0.02, 7: -0.01, 11: 0.3}


def result(name: str, kind: str, mean_ap: float, ms: float, drops: dict[int, float], broken: str = "") -> Result:
    class_drops = np.full(527, np.nan)
    for i, drop in drops.items():
        class_drops[i] = drop
    comparison = Comparison(mean_ap, 0.9, class_drops, 4, 0.01, 0.005, 0.02, 0.75, 0.8)
    problems = (broken,) if broken else ()
    return Result(f"b/{name}", kind, "onnxruntime 1", comparison, None, 4, 0.0, ms, 0.1, 6.0, 90.0, problems)


@pytest.fixture
def results() -> list[Result]:
    return [
        result("x-int8.onnx", "int8", 0.85, 20.0, DROPS, broken="mAP drop 0.05 is over 0.002"),
        result("x-fp32.onnx", "fp32", 0.90, 40.0, dict.fromkeys(DROPS, 0.0)),
    ]


@pytest.fixture
def reference() -> Reference:
    probs = np.full((4, 527), 0.5, np.float32)
    figures: dict[str, float | int | None] = {"mean_ap": 0.9, "classes_present": 3}
    ids = ("a", "b", "c", "d")
    return Reference(ids, probs, np.zeros(527), figures, "a <fast> GPU", "fp32", {}, "d" * 64, "e" * 64)


def points(collection: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in collection.get_offsets()]


def test_accuracy_is_drawn_against_latency(results: list[Result], reference: Reference) -> None:
    (axes,) = report.accuracy_plot(results, reference).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("latency of a full window in ms (median)", "mAP")
    assert [points(c) for c in axes.collections] == [[(20.0, 0.85)], [(40.0, 0.90)]]
    (line,) = axes.lines
    assert set(line.get_ydata()) == {0.9}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "reference, 0.9000",
        "x-int8.onnx, onnxruntime 1: 0.8500, 20.0 ms",
        "x-fp32.onnx, onnxruntime 1: 0.9000, 40.0 ms",
    ]
    # The point of a broken result is hollow, and every file has its colour.
    int8, fp32 = axes.collections
    assert len(int8.get_facecolor()) == 0
    assert tuple(fp32.get_facecolor()[0]) == to_rgba("C1")
    assert tuple(int8.get_edgecolor()[0]) == to_rgba("C0")
    assert axes.get_xlim()[0] == 0.0
    assert axes.get_xlim()[1] > 40.0


def test_classes_are_drawn_with_the_largest_drop_on_top(results: list[Result]) -> None:
    (axes,) = report.class_plot(results).axes
    names = [labels()[i].name for i in (7, 3, 11)]  # from the bottom up
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names
    _, int8, fp32 = axes.collections  # the first are the lines from the least drop of a class to its largest
    assert points(int8) == [(-0.01, 0.0), (0.02, 1.0), (0.3, 2.0)]
    assert points(fp32) == [(0.0, 0.0), (0.0, 1.0), (0.0, 2.0)]
    spans = [sorted(path.vertices[:, 0].tolist()) for path in axes.collections[0].get_paths()]
    assert spans == [[-0.01, 0.0], [0.0, 0.02], [0.0, 0.3]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "x-int8.onnx, onnxruntime 1",
        "x-fp32.onnx, onnxruntime 1",
    ]


def test_only_the_worst_classes_are_drawn() -> None:
    drops = {i: i / 100 for i in range(40)}
    (axes,) = report.class_plot([result("x.onnx", "int8", 0.8, 1.0, drops)]).axes
    assert [float(x) for x, _ in points(axes.collections[1])] == [i / 100 for i in range(15, 40)]


def test_a_name_with_dollars_is_no_formula(results: list[Result], reference: Reference, tmp_path: Path) -> None:
    odd = dataclasses.replace(results[0], file="b/$\\frac$.onnx")
    report.write_html(tmp_path / "x.html", [odd], reference)
    assert "$\\frac$.onnx" in (tmp_path / "x.html").read_text()


class Cells(HTMLParser):
    """The rows of every table of a page, each cell with its classes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[str, str]]]] = []
        self._classes: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        self._classes = dict(attrs).get("class") or "" if tag in ("td", "th") else None

    def handle_data(self, data: str) -> None:
        if self._classes is not None:
            self.tables[-1][-1].append((data, self._classes))
            self._classes = None


def test_the_verdict_is_the_first_column_of_the_page(
    results: list[Result], reference: Reference, tmp_path: Path
) -> None:
    """The table is wider than a small window, and what stands at its right is scrolled out of sight."""
    report.write_html(tmp_path / "x.html", results, reference)
    text = (tmp_path / "x.html").read_text()
    facts, figures, notes = Cells(text).tables
    assert facts[0][1][0] == "mAP 0.9000 over 3 classes, 4 clips, fp32 on a <fast> GPU"
    head, int8, fp32 = figures
    assert [cell for cell, _ in head[:3]] == ["verdict", "file", "runtime"]
    assert int8[:3] == [("BROKEN", "left broken"), ("x-int8.onnx", "left"), ("onnxruntime 1", "left")]
    assert fp32[0] == ("ok", "left")
    assert (int8[3], int8[4]) == (("0.8500", ""), ("+0.0500", ""))
    assert notes[-2][0][0] == "x-fp32.onnx on onnxruntime 1: no class lost"
    assert ("x-int8.onnx on onnxruntime 1: BROKEN: mAP drop 0.05 is over 0.002", "broken") in notes[2]
    assert text.index("Bounds are broken.") < text.index("<table")
    report.write_html(tmp_path / "x.html", results[1:], reference)
    assert "All bounds hold." in (tmp_path / "x.html").read_text()


def test_columns_are_aligned(results: list[Result]) -> None:
    head, int8, fp32 = report.text_table(report.CHECK_HEAD, report.check_rows(results)).splitlines()
    assert int8.startswith("BROKEN   x-int8.onnx  onnxruntime 1  0.8500  +0.0500")
    assert fp32.startswith("ok       x-fp32.onnx  onnxruntime 1  0.9000  +0.0000")
    assert head.index("file") == int8.index("x-int8") == fp32.index("x-fp32")
    assert head.index("peak MB") + len("peak MB") == len(head) == len(int8) == len(fp32)


def test_notes_of_clips_with_another_input(results: list[Result]) -> None:
    int8 = dataclasses.replace(results[0], clips=6, stream_difference=0.125, broken=())
    lines = report.notes([int8])
    assert lines == [
        f"x-int8.onnx on onnxruntime 1: lost most: {labels()[11].name} +0.300, {labels()[3].name} +0.020",
        "x-int8.onnx on onnxruntime 1: 2 of 6 clips were cut or padded differently than for the reference; "
        "only their mAP is compared",
        "x-int8.onnx on onnxruntime 1: predictions in a stream are different by 0.12",
    ]
    held = dataclasses.replace(int8, fp32=int8.reference)
    assert report.notes([held])[1].endswith("they are compared with the fp32 file on the same input")
