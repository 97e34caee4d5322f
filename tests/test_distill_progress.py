"""Progress without a terminal: at least a line a minute, with the time left."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill import progress
from distill.progress import ProgressBar, stage, time_left


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="distill"):
        yield caplog


@pytest.mark.parametrize("step_s", [0.05, 1.0, 7.0, 29.0])
def test_a_training_run_writes_a_line_a_minute_with_the_time_left(
    clock: Clock, lines: pytest.LogCaptureFixture, step_s: float
) -> None:
    times = []
    with ProgressBar("train") as bar:
        for step in range(1, 601):
            clock.now += step_s
            before = len(lines.messages)
            bar.update(step, 600, f"loss {step}")
            times += [clock.now] * (len(lines.messages) - before)
    assert all(b - a <= 60.0 for a, b in itertools.pairwise(times))
    assert len(times) <= 2 + 600 * step_s / 30.0  # and not more than one in half a minute
    assert lines.messages[0] == "train: 1 of 600, loss 1"
    assert lines.messages[-1] == "train: 600 of 600, loss 600"
    assert all(message.endswith("left") for message in lines.messages[1:-1])


def test_the_time_left_of_a_run_that_continues_counts_only_its_own_steps(
    clock: Clock, lines: pytest.LogCaptureFixture
) -> None:
    with ProgressBar("train") as bar:
        bar.update(9_000, 10_000)
        clock.now += 60.0
        bar.update(9_100, 10_000)  # 0.6 s a step: 900 steps are 540 s
    assert lines.messages == ["train: 9000 of 10000", "train: 9100 of 10000, 9 min left"]


def test_a_stage_counts_what_is_done(clock: Clock, lines: pytest.LogCaptureFixture) -> None:
    with stage("pack", 8) as advance:
        for _ in range(4):
            clock.now += 20.0
            advance(2)
    assert lines.messages == ["pack: 0 of 8", "pack: 4 of 8, 40 s left", "pack: 8 of 8"]


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0.0, 1e6))
def test_the_time_left_in_words(done: int, left: int, seconds: float) -> None:
    text = time_left(done, left, seconds)
    if not done or not left:
        assert text == ""
        return
    number = {"s": 1, "min": 60, "h": 3600}
    words = text.removesuffix(" left").split()
    total = sum(int(n) * number[unit] for n, unit in zip(words[::2], words[1::2], strict=True))
    expected = seconds / done * left
    assert expected - 0.5 <= total <= expected + 60.5  # rounded up to whole minutes from one minute on


def test_examples_of_the_time_left() -> None:
    assert time_left(1, 59, 1.0) == "59 s left"
    assert time_left(1, 61, 1.0) == "2 min left"
    assert time_left(10, 39_000, 1.0) == "1 h 05 min left"
