"""A stream of a day: does the memory stay flat, and does its clock stay exact?

    python benchmarks/long_stream.py --hours 24

Raw PCM of 48 kHz stereo goes through the code of `ced-edge listen -`: PcmSource, StreamingTagger, Events. Only the
clock and the model are stand-ins. The clock is moved by the script, so that a day takes minutes. The model returns how
loud a window is, and remembers where its largest sample is. The stream has outages of random lengths, and its level
jumps between digital zeros, quiet, loud and clipped noise. Every 2 s of a segment there is a click, by whose place in
the windows the clock is checked: the time of each click must be exact to the sample, from the beginning to the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from ced_edge.arrays import Float32
from ced_edge.audio import sources
from ced_edge.audio.sources import Item, PcmSource
from ced_edge.frontend import StreamMel
from ced_edge.runtime import listen as listen_module
from ced_edge.runtime.events import Event, EventRule, Events
from ced_edge.runtime.listen import ListenStats, listen
from ced_edge.runtime.tagger import StreamingTagger, Tagger, Tags
from ced_edge.spec import FrontendSpec

SOURCE_HZ, RATE = 48_000, 16_000
PERIOD = 2 * SOURCE_HZ
"""Frames from click to click."""
LEVELS = {"zeros": 0.0, "quiet": 0.001, "normal": 0.03, "loud": 0.1, "clipped": 8.0}
UNIX_S = 1_800_000_000.0


class Clock:
    """The time is that of the frames so far, outages included."""

    frames = 0

    def monotonic(self) -> float:
        return 100.0 + self.frames / SOURCE_HZ

    def time(self) -> float:
        return UNIX_S + self.frames / SOURCE_HZ


def blocks(rng: np.random.Generator) -> dict[str, bytes]:
    """2 s of 48 kHz stereo of each level, as s16le, with a click in the middle."""
    noise = rng.normal(0, 1, (PERIOD, 2))
    made = {}
    for name, level in LEVELS.items():
        wave = np.clip(noise * level, -1, 32_767 / 32_768)
        if 0 < level < 1:
            wave[PERIOD // 2] = 0.99
        made[name] = (wave * 32_768).astype("<i2").tobytes()
    return made


class Day:
    """A Source: a PcmSource whose pipe delivers one piece at each `read`, at the pace of the clock."""

    def __init__(self, clock: Clock, hours: float, seed: int, segment_s: tuple[int, int]) -> None:
        self.clock, self._segment_s = clock, segment_s
        self.segments: list[tuple[int, list[str]]] = []
        """First sample of each segment at the model's rate, and the level of each of its periods."""
        self.outages = 0
        self._rng, self._frames = np.random.default_rng(seed), round(hours * 3_600 * SOURCE_HZ)
        self._blocks = blocks(self._rng)
        self._given, self._wanted = threading.Semaphore(0), threading.Semaphore(0)
        self._data: bytes | None = b""
        self._pieces = self._make()
        self._source = PcmSource(cast(Any, SimpleNamespace(read=self._read_pipe)), SOURCE_HZ, 2, "s16le")
        self._wanted.acquire()

    @property
    def live(self) -> bool:
        return self._source.live

    @property
    def started_unix_s(self) -> float | None:
        return self._source.started_unix_s

    def read(self, wait_s: float) -> list[Item] | None:
        self._data = next(self._pieces, None)
        if self._data is None:
            self._given.release()
            return self._source.read(60.0)
        if self._data:
            self._given.release()
            self._wanted.acquire()  # the thread has taken the piece, and waits for the next one
        return self._source.read(0.0)

    def close(self) -> None:
        pass

    def _read_pipe(self, most: int) -> bytes:
        self._wanted.release()
        self._given.acquire()
        return self._data or b""

    def _make(self) -> Iterator[bytes]:
        """Pieces of up to 0.1 s. An empty one is a part of an outage."""
        rng = self._rng
        while self.clock.frames < self._frames:
            wanted = int(rng.integers(*self._segment_s) * SOURCE_HZ + rng.integers(SOURCE_HZ))
            length = min(wanted, self._frames - self.clock.frames)
            levels = rng.choice(list(LEVELS), 1 + length // PERIOD, p=[0.1, 0.2, 0.3, 0.3, 0.1]).tolist()
            # A frame is a third of a sample, so no start is half way between two samples.
            self.segments.append((round(self.clock.frames / 3), levels))
            at = 0
            while at < length:
                count = min(int(rng.integers(1_000, 4_800)), length - at, PERIOD - at % PERIOD)
                begin = at % PERIOD * 4
                at += count
                self.clock.frames += count
                yield self._blocks[levels[(at - 1) // PERIOD]][begin : begin + count * 4]
            outage = int(rng.integers(round(1.2 * SOURCE_HZ), 120 * SOURCE_HZ))
            if self.clock.frames + outage >= self._frames:
                return
            self.outages += 1
            for part in (outage // 2, outage - outage // 2):
                self.clock.frames += part
                yield b""


class StandIn:
    """Instead of a model: two classes, loud and not loud."""

    rate_hz = RATE

    def __init__(self) -> None:
        spec = SimpleNamespace(min_samples=512, frontend=FrontendSpec())
        self.bundle = SimpleNamespace(spec=spec, window_samples=2 * RATE, folder="stand-in")
        self.largest = 0

    def predict_window(self, wave: Float32, mels: StreamMel | None = None, start: int = 0) -> Float32:
        self.largest = int(wave.argmax())
        loud = np.float32(min(1.0, 4 * float(np.abs(wave[::16]).mean())))
        return np.array([loud, 1 - loud], np.float32)


class Checker:
    """A Show that compares the time of every click with the truth, and measures the memory after an hour."""

    def __init__(self, day: Day, model: StandIn) -> None:
        self._day, self._model = day, model
        self.clicks = self.off = self.events = self.notes = self.crossed = 0
        self.worst_time_of_day_s = 0.0
        self.gaps: list[tuple[float, float]] = []
        self.peak_after_1_h_mb: float | None = None

    def tags(self, tags: Tags, active: list[int], stats: ListenStats) -> None:
        first, levels = self._day.segments[stats.gaps]
        at = round(tags.start_s * RATE) + self._model.largest - first  # samples from the start of the segment
        period = 2 * RATE
        stop = round(tags.end_s * RATE) - first
        begin = round(tags.start_s * RATE) - first
        inside = [k for k in range(begin // period, stop // period + 1) if begin <= k * period + RATE < stop]
        # Clipped noise is louder than a click. The resampler carries it some samples into the next period.
        around = range(max(0, begin - 200) // period, min(len(levels) - 1, stop // period) + 1)
        levels_inside = {levels[k] for k in around}
        if len(inside) == 1 and levels[inside[0]] not in ("zeros", "clipped") and "clipped" not in levels_inside:
            self.clicks += 1
            self.off = max(self.off, abs(at - inside[0] * period - RATE))
        if stats.started_unix_s is not None:
            self.worst_time_of_day_s = max(self.worst_time_of_day_s, abs(stats.started_unix_s - UNIX_S))
        if self.peak_after_1_h_mb is None and tags.end_s >= 3_600:
            self.peak_after_1_h_mb = peak_mb()

    def event(self, event: Event, stats: ListenStats) -> None:
        self.events += 1
        self.crossed += any(event.start_s < start_s and end_s < event.end_s for start_s, end_s in self.gaps[-2:])

    def gap(self, start_s: float, end_s: float, stats: ListenStats) -> None:
        self.gaps.append((start_s, end_s))

    def note(self, text: str) -> None:
        self.notes += 1


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def run(hours: float, seed: int = 0, segment_s: tuple[int, int] = (60, 1_800)) -> dict[str, float | int | None]:
    """Listen to so many hours, and return the figures. `segment_s` is the range of the time between two outages."""
    began, clock, model, stats = time.monotonic(), Clock(), StandIn(), ListenStats()
    real = sources.time, listen_module.time
    try:
        sources.time = listen_module.time = cast(Any, clock)
        day = Day(clock, hours, seed, segment_s)
        checker = Checker(day, model)
        stream = StreamingTagger(cast(Tagger, model), 2.0, 0.5)
        listen(day, stream, Events(EventRule(0.5, 0.4), 2), checker, stats=stats)
    finally:
        sources.time, listen_module.time = real
    return {
        "hours": hours,
        "seconds_taken": round(time.monotonic() - began, 1),
        "windows": stats.windows,
        "skipped": stats.skipped,
        "outages": day.outages,
        "gaps": stats.gaps,
        "clicks": checker.clicks,
        "worst_click_samples": checker.off,
        "end_samples_off": round(stats.seconds * RATE) - round(day.clock.frames / 3),
        "worst_time_of_day_s": round(checker.worst_time_of_day_s, 6),
        "events": checker.events,
        "events_across_a_gap": checker.crossed,
        "notes": checker.notes,
        "peak_after_1_h_mb": checker.peak_after_1_h_mb,
        "peak_mb": peak_mb(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(run(args.hours, args.seed), indent=1))


if __name__ == "__main__":
    main()
