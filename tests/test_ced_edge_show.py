"""How tags and events are shown on a screen and as text."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from ced_edge.audio.level import Level
from ced_edge.runtime.clock import clock
from ced_edge.runtime.events import Event
from ced_edge.runtime.listen import ListenStats
from ced_edge.runtime.show import Screen, TextLines, level_dict, level_text
from ced_edge.runtime.tagger import Tags


def probs() -> np.ndarray:
    probs = np.zeros(527, np.float32)
    probs[[74, 23]] = 0.9, 0.4
    return probs


def test_the_screen_is_drawn_in_place(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "38")
    screen = Screen(2, 0.0, False)
    for i in range(2):
        screen.tags(
            Tags(i, i + 2.0, probs(), Level(-23.4, -3.0, False) if i else None), [74], ListenStats(skipped=3 * i)
        )
    screen.event(Event(74, 1.0, 2.5, 0.93), ListenStats())
    out = capsys.readouterr().out
    frames = out.split("\x1b[3F\x1b[J")  # three lines up, and clear them
    assert frames[0].splitlines() == ["0:02.0", " 0.90 #########  Dog *", " 0.40 ####       Baby cry, infant cry"]
    assert frames[1].startswith("0:03.0  -23.4 dBFS, 3 windows skipped\n")
    assert frames[2].splitlines()[:2] == ["0:01.0 - 0:02.5 Dog (at most 0.93)", frames[1].splitlines()[0]]
    assert frames[2].splitlines()[1:] == frames[1].splitlines()  # the tags again, below the event
    assert len(frames) == 3


@pytest.mark.parametrize("columns", [10, 20, 24, 30, 40, 80])
def test_names_are_seen_on_a_terminal_of_any_width(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    long = Event(23, 3_661.0, 3_663.5, 0.93)
    for show in (Screen(5, 0.1, False), TextLines(5, 0.1, False, columns)):
        show.tags(Tags(3_600.0, 3_602.0, probs(), Level(-23.4, -3.0, False)), [], ListenStats(skipped=3))
        show.event(long, ListenStats())
        lines = re.sub(r"\x1b\[[0-9]*[FJ]", "", capsys.readouterr().out).splitlines()
        assert max(map(len, lines)) < columns
        assert any("Dog" in line for line in lines)
        assert any("Baby" in line for line in lines)
        text = "".join("".join(lines).split())
        assert "1:01:01.0" in text  # the time of the event
        assert "0.93" in text


def test_a_level_in_text_and_json() -> None:
    zeros = Level(-math.inf, -math.inf, False)
    assert level_text(zeros).strip() == "zeros"
    assert level_text(Level(-23.44, 0.5, True)).strip() == "-23.4 dBFS"
    assert level_dict(zeros) == {"level_dbfs": None, "peak_dbfs": None, "gain_db": 0.0}
    assert level_dict(Level(-23.456, 0.5, True, 20.0)) == {"level_dbfs": -23.46, "peak_dbfs": 0.5, "gain_db": 20.0}
    assert level_dict(None) == {}


def test_the_screen_is_no_higher_than_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINES", "4")
    screen = Screen(10, 0.0, False)
    for i in range(2):
        screen.tags(Tags(i, i + 2.0, np.zeros(527, np.float32)), [], ListenStats())
    first, second = capsys.readouterr().out.split("\x1b[3F\x1b[J")
    assert len(first.splitlines()) == len(second.splitlines()) == 3  # the fourth row is for the cursor
    screen.note("it stays")
    screen.note("and this")
    assert capsys.readouterr().out.count("\x1b[3F\x1b[J") == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00.0"), (7.46, "0:07.5"), (59.96, "1:00.0"), (3_600, "1:00:00.0"), (3_661.25, "1:01:01.2")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
