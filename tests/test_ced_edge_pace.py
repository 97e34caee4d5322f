"""Live or not, gaps, the time of day, and wrong rates: a pipe and a clock that the test moves."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

import pytest

from ced_edge.audio import sources
from ced_edge.audio.pace import Pace
from ced_edge.audio.sources import Gap, Hint, Item, PcmSource

RATE = 16_000
NOON = 1_800_000_000.0
"""A time of day, in seconds since 1970."""


class Clock:
    """A clock that the test moves. The time of day may be set in between."""

    def __init__(self) -> None:
        self.now, self.noon = 100.0, NOON - 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.noon + self.now


class Pipe:
    """A pipe into which the test puts audio, and the time that passes before; so audio and clock are in step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, piece_s: float = 0.128, channels: int = 1) -> None:
        self.clock, self._piece_s, self._samples = Clock(), piece_s, 2 * channels
        self._waits_s: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._written = self._read = 0
        self.items: list[Item] = []
        monkeypatch.setattr(sources, "time", self.clock)
        monkeypatch.setattr(sources, "PIECE_S", piece_s)
        monkeypatch.setattr(sources, "_HEAD_BYTES", round(piece_s * RATE) * self._samples)
        self.source = PcmSource(self, RATE, channels, "s16le")

    def read(self, n: int) -> bytes:
        self._read += 1
        wait_s = self._waits_s.get()
        if wait_s is None:
            return b""
        self.clock.now += wait_s
        return bytes(n)

    def write(self, seconds: float, pace: float) -> None:
        """So much audio, `pace` times as fast as the clock."""
        for _ in range(round(seconds / self._piece_s)):
            self._written += 1
            self._waits_s.put(self._piece_s / pace)

    def run(self, seconds: float, pace: float) -> set[bool]:
        """Write, and read each piece as it comes; whether the source was live meanwhile."""
        seen = set()
        for _ in range(round(seconds / self._piece_s)):
            self.write(self._piece_s, pace)
            assert not wait_while(lambda: self._read <= self._written)
            self.items += self.source.read(0.0) or []
            seen.add(self.source.live)
        return seen

    def close(self) -> None:
        self._waits_s.put(None)
        while (items := self.source.read(5.0)) is not None:
            self.items += items

    def gaps(self) -> list[tuple[float, float]]:
        """(seconds of audio before it, its length)."""
        found, audio_s = [], 0.0
        for item in self.items:
            if isinstance(item, Gap):
                found.append((round(audio_s, 3), round(item.seconds, 3)))
            elif not isinstance(item, Hint):
                audio_s += len(item[0]) / item[1]
        return found

    def hints(self) -> list[str]:
        return [item.text for item in self.items if isinstance(item, Hint)]


def wait_while(on: Callable[[], bool], limit_s: float = 5.0) -> bool:
    """Whether it is still on at the end."""
    end_s = time.monotonic() + limit_s
    while on() and time.monotonic() < end_s:
        time.sleep(0.0005)
    return on()


@pytest.mark.parametrize(("pace", "live"), [(1.0, True), (0.9, True), (4.0, False)])
def test_a_pipe_that_runs_ahead_of_the_clock_is_not_live(
    monkeypatch: pytest.MonkeyPatch, pace: float, live: bool
) -> None:
    pipe = Pipe(monkeypatch)
    assert not pipe.source.live
    assert pipe.run(4.8 * pace, pace) == {False}  # nothing is known yet
    pipe.run(1, pace)
    assert pipe.run(40, pace) == {live}
    assert (pipe.source.started_unix_s is not None) == live
    pipe.close()
    assert not pipe.source.live  # it cannot get further behind
    assert pipe.gaps() == []


def test_a_live_pipe_may_begin_with_a_burst_and_be_late(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    assert pipe.run(6, 1e9) == {False}
    pipe.run(6, 1.0)
    assert pipe.run(20, 1.0) == {True}
    pipe.clock.now += 8  # the network hangs, and then all comes at once
    pipe.run(8, 1e9)
    assert pipe.run(4, 1.0) == {False}  # no window of the burst is skipped
    pipe.run(2, 1.0)
    assert pipe.run(20, 1.0) == {True}
    pipe.clock.now += 4  # as fast as a decoder can
    pipe.run(8, 2.0)
    pipe.run(6, 1.0)
    pipe.close()
    assert pipe.gaps() == []


@pytest.mark.parametrize("fast", [1.0002, 0.9998])
def test_a_sound_card_may_be_fast_or_slow_for_a_day(fast: float) -> None:
    pace, now = Pace(), 100.0
    for _ in range(24 * 3_600):
        now += 1 / fast
        assert pace.arrived(1.0, now, NOON + now) == 0
        assert not pace.ahead
    # Its time is 17 s off after this day. The time of day is still that of the clock.
    assert pace.started_unix_s is not None
    assert pace.started_unix_s + pace.received_s - NOON - now == pytest.approx(0, abs=0.6)


def test_a_pipe_whose_writer_waits_for_us_may_be_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    pipe.run(10, 1.0)
    assert pipe.source.live
    pipe.write(31, 1.0)
    assert not wait_while(lambda: pipe.source.live)
    assert pipe.source.read(5.0)
    assert not pipe.source.live  # the pace was ours
    assert pipe.source.started_unix_s is None
    while pipe.source.read(0.1):
        pass
    pipe.clock.now += 3  # its writer may have paused
    pipe.run(6, 1.0)
    assert pipe.source.live
    pipe.close()
    assert pipe.gaps() == []


@pytest.mark.parametrize("lost_s", [1.5, 8.0, 3_600.0])
@pytest.mark.parametrize("before_s", [2.048, 30.72])
def test_an_outage_of_a_live_pipe_is_a_gap(monkeypatch: pytest.MonkeyPatch, lost_s: float, before_s: float) -> None:
    pipe = Pipe(monkeypatch)
    pipe.run(before_s, 1.0)
    began = pipe.source.started_unix_s
    assert began == pytest.approx(NOON, rel=0, abs=0.01)
    pipe.clock.now += lost_s
    pipe.run(2.048, 1.0)
    assert pipe.gaps() == [(before_s, lost_s)]
    for _ in range(80):
        pipe.run(0.128, 1.0)
        assert pipe.source.started_unix_s == began
    pipe.clock.now += 5
    pipe.run(0.256, 1.0)  # it ends before it is clear whether a burst follows
    pipe.close()
    assert pipe.gaps() == [(before_s, lost_s), (round(before_s + 12.288, 3), 5.0)]


@pytest.mark.parametrize("backlog_s", [0.128, 1.024, 2.048])
def test_audio_may_wait_in_the_pipe_while_the_program_starts(monkeypatch: pytest.MonkeyPatch, backlog_s: float) -> None:
    pipe = Pipe(monkeypatch)
    pipe.run(backlog_s, 1e9)
    pipe.run(0.512, 1.0)
    assert pipe.items == []  # before the pace is known, nothing is given
    pipe.run(1.536, 1.0)
    assert pipe.source.started_unix_s == pytest.approx(NOON - backlog_s, rel=0, abs=0.01)
    pipe.clock.now += 5
    pipe.run(2.048, 1.0)
    pipe.close()
    assert pipe.gaps() == [(backlog_s + 2.048, 5.0)]


@pytest.mark.parametrize("buffered_s", [0.512, 2.048, 6.016])
def test_a_part_of_the_lost_audio_may_be_in_a_buffer(monkeypatch: pytest.MonkeyPatch, buffered_s: float) -> None:
    pipe = Pipe(monkeypatch)
    pipe.run(5.12, 1.0)
    pipe.clock.now += 8
    pipe.run(buffered_s, 1e9)
    pipe.run(2.56, 1.0)
    pipe.close()
    assert pipe.gaps() == [(5.12, pytest.approx(8 - buffered_s, abs=0.01))]


@pytest.mark.parametrize("block_s", [1.28, 2.048, 4.096])
def test_a_writer_with_a_large_buffer_has_no_gaps(monkeypatch: pytest.MonkeyPatch, block_s: float) -> None:
    pipe = Pipe(monkeypatch)
    for _ in range(12):
        pipe.run(block_s, 1e9)
        pipe.clock.now += block_s
    pipe.close()
    assert pipe.gaps() == []


def test_a_pipe_that_is_no_live_source_has_no_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    pipe.run(10.24, 20.0)
    pipe.clock.now += 60  # the disk is slow
    pipe.run(10.24, 20.0)
    assert pipe.source.started_unix_s is None
    pipe.close()
    assert pipe.gaps() == []


def test_a_clock_that_is_set_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small computer without a battery gets the date from the network, after it has started."""
    pipe = Pipe(monkeypatch)
    pipe.run(5.12, 1.0)
    pipe.clock.noon += 86_400
    pipe.run(123.0, 1.0)
    assert pipe.source.started_unix_s == pytest.approx(NOON + 86_400, rel=0, abs=0.01)
    pipe.close()


@pytest.mark.parametrize(
    ("pace", "expected"),
    [
        (6.0, "is it 48000 Hz x 2 (--rate 48000 --channels 2)"),
        (5.5125, "is it 44100 Hz x 2 (--rate 44100 --channels 2)"),
        (3.0, "is it 48000 Hz x 1 (--rate 48000 --channels 1)"),
        (2.756, "is it 44100 Hz x 1 (--rate 44100 --channels 1)"),
        (2.0, "is it 16000 Hz x 2 (--rate 16000 --channels 2) or 32000 Hz x 1"),
        (1.378, "is it 22050 Hz x 1"),
        (1.5, "is it 24000 Hz x 1 (--rate 24000 --channels 1) or samples of 24 bits (--pcm-format)"),
        (0.5, "is it 8000 Hz x 1 (--rate 8000 --channels 1)"),
    ],
)
def test_a_steady_pace_of_another_rate_gives_a_hint(
    monkeypatch: pytest.MonkeyPatch, pace: float, expected: str
) -> None:
    pipe = Pipe(monkeypatch)
    pipe.run(11 * pace, pace)
    pipe.close()
    (hint,) = pipe.hints()
    assert expected in hint
    assert hint.startswith(f"the pipe brings {pace:.2f} times as much audio as 16000 Hz x 1 channel does")


@pytest.mark.parametrize("pace", [0.99, 1.0, 1.01, 4.3, 7.0, 300.0])
def test_another_pace_gives_no_hint(monkeypatch: pytest.MonkeyPatch, pace: float) -> None:
    pipe = Pipe(monkeypatch)
    pipe.run(min(6 * pace, 60), pace)
    pipe.close()
    assert pipe.hints() == []


def test_a_file_that_is_decoded_in_bursts_gives_no_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    for _ in range(4):  # 6 times as fast as the clock on average
        pipe.run(15.36, 1e9)
        pipe.clock.now += 2.56
    pipe.close()
    assert pipe.hints() == []


def test_pieces_that_are_held_are_few() -> None:
    """Even a burst that never ends is not held for ever."""
    pace, now = Pace(), 100.0
    for _ in range(50):
        now += 0.1
        assert pace.arrived(0.1, now, now) == 0
    now += 3_600
    held = 0
    while pace.arrived(0.1, now, now) is None:
        now += 0.01
        held += 1
    assert 250 < held <= 300
    assert pace.received_s == pytest.approx(3_600 + 5.0 + 0.01 * held, abs=0.2)
