"""The pace at which audio arrives, compared with the clock: whether a source is live, and how much of it was lost."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator

PACE_S = 5.0
"""A source counts as live after this long in step with the clock."""
_AHEAD_S = 1.0
"""A source that delivers this much more audio than time has passed is not live. Sound cards deviate by less."""
_OUTAGE_S = 1.0
"""Audio that is later than this may be lost."""
_BURST_S = 0.5
"""After an outage, audio that was only late arrives in a burst: in this time more than it lasts, see `_caught_up`."""
_BACKLOG_S, _LEAST_S = 0.25, 0.5
"""What arrives in the first quarter of a second waited in the pipe while this program started. In the half second
after it, the clock shows the pace.
"""
_ANCHOR_S, _DRIFT_S = 60.0, 0.5
"""Once in so many seconds the time of day is compared; the start moves if the two differ by more than the second."""
_HELD_S = 30.0
"""Most audio that waits for the decision about an outage."""
_HINT_S = (5.0, 10.0)
"""When the rate is judged: seconds after the first audio."""
_STEADY_S, _SAME = 0.5, 0.03
"""A pace is steady if no arrival is further than this from a straight line. Two paces are the same up to this share."""
_RATES_HZ = (48_000, 44_100, 16_000, 32_000, 22_050, 8_000, 24_000, 11_025, 96_000)


class Pace:
    """What the arrival times of a source's pieces mean. All times are in seconds.

    `now` is the monotonic clock, `unix_s` the time of day. A source is *in step* when it has delivered about as much
    audio as time has passed. When such a source pauses, its audio may come late, in a burst, or be lost. So the pieces
    after a pause of more than a second are held until the burst is over; what is missing then is lost, and is a gap.
    A file that a program decodes into a pipe is not in step, and has no gaps. A program that decodes at exactly the
    pace of the clock, and pauses, looks like a live one.
    """

    def __init__(self) -> None:
        self.received_s = 0.0
        """Audio so far, gaps included: the time of the stream."""
        self.ahead = False
        """Whether audio arrived faster than the clock runs."""
        self.live_from = math.inf
        """The source can count as live from this time on."""
        self.in_step = False
        self.known_from = -math.inf
        """The clock shows the pace from this time on, for the first time."""
        self._last: float | None = None  # when the last piece arrived
        self._judged_from = 0.0  # before this time, the pace is not known, or not known again
        self._backlog = (0.0, 0.0)  # as a mark: when the backlog ended
        self._marks: collections.deque[tuple[float, float]] = collections.deque()  # (now, received_s until then)
        self._start_unix_s = 0.0
        self._anchor = (0.0, math.inf)  # since when, and the earliest start that the pieces since then allow
        self._waiting: tuple[float, float, float] | None = None  # outage: last arrival, block's begin, its audio
        self._held_s = 0.0

    @property
    def started_unix_s(self) -> float | None:
        """The time of day at second 0 of the stream, or None if its audio does not come in step with the clock."""
        return self._start_unix_s if self.in_step else None

    def throttled(self, until: float) -> None:
        """The reader is slow, and the source has to wait for it until then: its pace so far means nothing."""
        self.live_from = self._judged_from = until + PACE_S
        self.in_step = False

    def arrived(self, seconds: float, now: float, unix_s: float) -> float | None:
        """Count a piece. Returns the length of the gap before it, 0 for none, or None while that is not known yet.

        After a None, the gap that is returned at last lies before the first piece with a None.
        """
        if self._last is None:
            self._last = now
            self._marks.append((now, 0.0))
            self.known_from = self._judged_from = now + _BACKLOG_S + _LEAST_S
            self.live_from = now + PACE_S
            self._anchor = now, math.inf
        gap_s: float | None = 0.0
        if self._waiting is None and self.in_step and now - self._last > _OUTAGE_S + seconds:
            self._waiting, self._held_s = (self._last, now, 0.0), 0.0
        if self._waiting is not None:
            self._held_s += seconds
            gap_s = self._caught_up(seconds, now)
        self._last = now
        self._count(seconds, now, unix_s)
        return gap_s

    def decide(self) -> float:
        """The gap before the pieces that are held, when no more pieces follow."""
        if self._waiting is None or self._last is None:
            return 0.0
        missing_s = self._last - self._waiting[0] - self._held_s
        self._waiting = None
        gap_s = missing_s if missing_s > _OUTAGE_S else 0.0
        self.received_s += gap_s
        return gap_s

    def _caught_up(self, seconds: float, now: float) -> float | None:
        """The gap after an outage, or None while the burst goes on that may still close it."""
        assert self._waiting is not None
        before, block, in_block_s = self._waiting
        in_block_s += seconds
        missing_s = now - before - self._held_s
        if missing_s <= _OUTAGE_S:
            self._waiting = None
            self._restart(now)
            self.live_from = now + PACE_S  # the burst is not skipped: there is time to predict it
            return 0.0
        if now - block < _BURST_S and self._held_s < _HELD_S:
            self._waiting = before, block, in_block_s
            return None
        if in_block_s > 1.5 * max(now - block, _BURST_S) and self._held_s < _HELD_S:
            self._waiting = before, now, 0.0
            return None
        self._waiting = None
        self.received_s += missing_s
        self._restart(now)
        return missing_s

    def _restart(self, now: float) -> None:
        """What was before an outage does not count for the pace after it."""
        self._backlog = now, self.received_s
        self._marks = collections.deque([self._backlog])

    def _count(self, seconds: float, now: float, unix_s: float) -> None:
        self.received_s += seconds
        self._marks.append((now, self.received_s))
        while self._marks[1][0] <= now - PACE_S:
            self._marks.popleft()  # the first mark that stays is the audio received until PACE_S ago
        self.ahead = self.received_s - self._marks[0][1] > PACE_S + _AHEAD_S
        if self._waiting is None:
            since, until_then_s = max(self._marks[0], self._backlog)
            passed, recent_s = min(now - since, PACE_S), self.received_s - until_then_s
            self.in_step = now >= self._judged_from and 0.5 * passed <= recent_s <= 1.25 * passed + _AHEAD_S
        began, start_unix_s = self._anchor
        self._anchor = began, min(start_unix_s, unix_s - self.received_s)
        if now <= self.known_from - _LEAST_S:
            self._backlog, self._start_unix_s = (now, self.received_s), self._anchor[1]
        if now - began >= _ANCHOR_S:
            # Sound cards and system clocks drift, and a small computer gets the date from the network some time
            # after it has started. A piece can arrive late but not early, so the earliest start is the true one.
            if abs(self._anchor[1] - self._start_unix_s) > _DRIFT_S:
                self._start_unix_s = self._anchor[1]
            self._anchor = now, math.inf


class RateCheck:
    """Compares the pace of a raw pipe with the rate that the user gave. Times are in seconds.

    The rule: over the first 5 s, and again over the first 10 s, the audio must grow along a straight line of the clock
    (no point more than half a second of the clock away). Its slope must be that of another usual rate, number of
    channels or sample size, within 3 %: 48 kHz stereo that is read as 16 kHz mono comes 6 times as fast as it should.
    A program that decodes a file delivers it as fast as it can, or waits for us: its slope is seldom one of these, and
    changes. The rule cannot distinguish everything: a program that delivers a file at exactly twice the pace of the
    clock looks like a live source with two channels; and a slope of 2 may be two channels, twice the rate, or samples
    of twice the size.
    """

    def __init__(self, rate_hz: int, channels: int, sample_bytes: int) -> None:
        self._given = rate_hz, channels, sample_bytes
        self._points: list[tuple[float, float]] = []
        self._begin: float | None = None
        self._left = list(_HINT_S)

    def stop(self) -> None:
        """The source has to wait for us: its pace is not its own."""
        self._left = []

    def hint(self, received_s: float, now: float) -> str | None:
        """A question to the user, once, if the pace so far is that of another rate. `received_s` is audio until now."""
        if not self._left:
            return None
        if self._begin is None:
            self._begin = now
        passed = now - self._begin
        # A source may begin with what its buffer holds. The first and the last point of each tenth of a second are
        # enough.
        if passed >= 1.0:
            if len(self._points) > 1 and now - self._points[-2][0] < 0.1:
                self._points.pop()
            self._points.append((now, received_s))
        if passed < self._left[0] or len(self._points) < 2:
            return None
        self._left.pop(0)
        (first, from_s), (last, to_s) = self._points[0], self._points[-1]
        pace = (to_s - from_s) / (last - first)
        steady = all(abs(s - from_s - pace * (t - first)) <= _STEADY_S * pace for t, s in self._points)
        inputs = list(self._inputs(pace)) if steady and abs(pace - 1) > _SAME else []
        if not inputs:
            return None
        self._left = []
        rate_hz, channels, _ = self._given
        return (
            f"the pipe brings {pace:.2f} times as much audio as {rate_hz} Hz x {channels} channel{'s' * (channels > 1)}"
            f" does: is it {' or '.join(inputs[:2])}?"
        )

    def _inputs(self, pace: float) -> Iterator[str]:
        """What the pipe may hold, the most usual one first."""
        given_hz, given_channels, given_bytes = self._given
        given = given_hz * given_channels * given_bytes
        for size in dict.fromkeys((given_bytes, 2, 4, 3)):
            for rate_hz in _RATES_HZ:
                for channels in (1, 2):
                    if abs(rate_hz * channels * size / given / pace - 1) <= _SAME:
                        flags = f"--rate {rate_hz} --channels {channels}"
                        if size == given_bytes:
                            yield f"{rate_hz} Hz x {channels} ({flags})"
                        elif (rate_hz, channels) == (given_hz, given_channels):
                            yield f"samples of {8 * size} bits (--pcm-format)"
