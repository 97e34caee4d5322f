"""How tags and events are shown on a screen and as text."""

from __future__ import annotations

import numpy as np
import pytest

from ced_edge.runtime.events import Event
from ced_edge.runtime.listen import ListenStats
from ced_edge.runtime.show import Screen, clock
from ced_edge.runtime.tagger import Tags


def test_the_screen_is_drawn_in_place(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "31")
    screen = Screen(2, 0.0, False)
    probs = np.zeros(527, np.float32)
    probs[[74, 23]] = 0.9, 0.4
    for i in range(2):
        screen.tags(Tags(i, i + 2.0, probs), [74], ListenStats(skipped=3 * i))
    screen.event(Event(74, 1.0, 2.5, 0.93))
    out = capsys.readouterr().out
    frames = out.split("\x1b[3F\x1b[J")  # three lines up, and clear them
    assert (
        frames[0].splitlines()
        == [
            "0:02.0",
            " 0.90 ##################   Dog",  # its star is beyond the edge of the terminal
            " 0.40 ########             Baby cry, infant cry"[:30],
        ]
    )
    assert frames[1].startswith("0:03.0, 3 windows skipped\n")
    assert frames[2].splitlines()[0] == "   0:01.0 -    0:02.5  Dog (at most 0.93)"
    assert frames[2].splitlines()[1:] == frames[1].splitlines()  # the tags again, below the event
    assert len(frames) == 3


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
