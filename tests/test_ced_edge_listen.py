"""Listening: which windows are predicted or skipped, and what happens at the end of a source or at an error."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from test_ced_edge_streaming import Loudness

from ced_edge.audio.base import AudioError
from ced_edge.audio.sources import FileSource, Item
from ced_edge.errors import CedEdgeError
from ced_edge.runtime.events import Event, EventRule, Events
from ced_edge.runtime.listen import ListenStats, listen
from ced_edge.runtime.tagger import StreamingTagger, Tags, tag_stream

RATE = 16_000
Float32 = NDArray[np.float32]


class Notebook:
    """A Show that keeps everything."""

    def __init__(self) -> None:
        self.seen: list[Tags] = []
        self.events: list[Event] = []
        self.gaps: list[tuple[float, float]] = []
        self.notes: list[str] = []

    def tags(self, tags: Tags, active: list[int], stats: ListenStats) -> None:
        self.seen.append(tags)

    def event(self, event: Event, stats: ListenStats) -> None:
        self.events.append(event)

    def gap(self, start_s: float, end_s: float, stats: ListenStats) -> None:
        self.gaps.append((start_s, end_s))

    def note(self, text: str) -> None:
        self.notes.append(text)


class Burst:
    """A source that delivers these seconds of audio, one number per read, as after a slow prediction."""

    started_unix_s = None

    def __init__(self, seconds: list[float], live: bool) -> None:
        self._seconds, self.live = iter(seconds), live

    def read(self, wait_s: float) -> list[Item] | None:
        s = next(self._seconds, None)
        return None if s is None else [(np.full(round(s * RATE), 0.9, np.float32), RATE)]

    def close(self) -> None:
        pass


def run(source: Any, hop_s: float = 0.1, **options: Any) -> tuple[ListenStats, Notebook]:
    book = Notebook()
    stream = StreamingTagger(Loudness(0.2), hop_s=hop_s)
    return listen(source, stream, Events(EventRule(), 2), book, **options), book


def test_a_slow_machine_skips_windows_and_reports_it() -> None:
    stats, book = run(Burst([0.2, 3.0, *[0.1] * 20], live=True))
    assert stats.skipped > 20
    assert stats.windows + stats.skipped == 1 + 30 + 20  # one every 0.1 s, and each is counted once
    assert stats.windows == len(book.seen)
    # It is never more than half a second late: the next window began at most 0.5 s + a window ago.
    assert book.seen[1].start_s >= 3.2 - 0.2 - 0.5
    assert stats.seconds == pytest.approx(5.2)
    assert "too slow for a hop of 0.1 s" in book.notes[0]
    assert "windows skipped so far" in book.notes[0]


def test_skipped_windows_are_reported_now_and_then() -> None:
    stats, book = run(Burst([1.0] * 100, live=True))
    assert stats.skipped > 500
    assert 3 < len(book.notes) < 12


def test_no_window_of_a_file_is_skipped() -> None:
    stats, book = run(Burst([0.2, 3.0, *[0.1] * 20], live=False))
    assert stats.skipped == 0
    assert stats.windows == 51
    assert book.notes == []


def test_the_last_events_are_flushed() -> None:
    _, book = run(Burst([1.0, 0.05], live=False))
    assert [(e.index, e.start_s, e.end_s) for e in book.events] == [(0, 0.0, pytest.approx(1.05))]


@pytest.mark.parametrize("live", [True, False])
def test_stopping_ends_the_events_and_predicts_no_more(live: bool) -> None:
    answers = iter([False] * 3)
    stats, book = run(Burst([0.25, 100.0, 0.1, 0.1], live), stopped=lambda: next(answers, True))
    assert stats.windows == 3
    assert book.events[-1].end_s == book.seen[-1].end_s == stats.seconds


def with_nan(cuts: list[int], at: int) -> Iterator[list[Item]]:
    """Two seconds of sound at 48 kHz with one NaN, in pieces of `cuts` frames."""
    wave = np.ones((2 * 48_000, 2), np.float32)
    wave[:30_000] = 0
    wave[at, 1] = np.nan
    begin = 0
    for n in itertools.cycle(cuts):
        if begin >= len(wave):
            return
        yield [(wave[begin : begin + n], 48_000)]
        begin += n


class Pieces:
    """A source that returns `given`, one item per read. An exception among them is raised."""

    started_unix_s: float | None = None

    def __init__(self, given: Iterable[list[Item] | Exception], live: bool = False) -> None:
        self._given, self.live = iter(given), live

    def read(self, wait_s: float) -> list[Item] | None:
        pieces = next(self._given, None)
        if isinstance(pieces, Exception):
            raise pieces
        return pieces

    def close(self) -> None:
        pass


def fails(source: Any, error: str) -> tuple[ListenStats, Notebook]:
    """The statistics and results of a source that fails with `error`."""
    stats, book = ListenStats(), Notebook()
    stream = StreamingTagger(Loudness(0.2), hop_s=0.1)
    with pytest.raises(CedEdgeError, match=error):
        listen(source, stream, Events(EventRule(), 2), book, stats=stats)
    return stats, book


@pytest.mark.parametrize("cuts", [[96_000], [64_000], [1_000], [1, 4_800, 77], [65_537]])
@pytest.mark.parametrize("at", [0, 64_000, 95_999])
def test_samples_before_a_nan_are_predicted_however_the_audio_is_cut(cuts: list[int], at: int) -> None:
    stats, book = fails(Pieces(with_nan(cuts, at)), rf"the sample at {at / 48_000:.3f} s \(index {at}\) is NaN")
    whole = StreamingTagger(Loudness(0.2), hop_s=0.1)
    wave = np.ones((at, 2), np.float32)
    wave[:30_000] = 0
    expected = list(tag_stream(whole, [(wave, 48_000)] if at else []))
    assert [(t.start_s, t.end_s) for t in book.seen] == [(t.start_s, t.end_s) for t in expected]
    assert all(np.array_equal(a.probs, b.probs) for a, b in zip(book.seen, expected, strict=True))
    assert stats.windows == len(expected)
    assert [e.index for e in book.events] == ([1, 0] if at else [])
    assert all(e.end_s == stats.seconds for e in book.events[1:])


@pytest.mark.parametrize("live", [True, False])
def test_samples_before_a_source_fails_are_predicted(live: bool) -> None:
    piece = (np.ones(RATE // 4, np.float32), RATE)
    stats, book = fails(Pieces([[piece], [piece], [piece], CedEdgeError("gone")], live), "gone")
    assert (stats.seconds, stats.skipped) == (0.75, 0)
    assert [(e.index, e.start_s, e.end_s) for e in book.events] == [(0, 0.0, 0.75)]


@pytest.mark.parametrize("frames", [RATE // 2, 0])
def test_another_rate_in_the_middle(frames: int) -> None:
    piece = np.ones(frames, np.float32)
    stats, _ = fails(Pieces([[(piece, RATE)], [(piece, 8_000)]]), "was given samples of 8000 Hz")
    assert stats.seconds == frames / RATE


def test_a_file_is_predicted_to_its_end(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, (48_000, 2))
    soundfile.write(tmp_path / "x.wav", wave, 48_000)
    stats, _ = run(FileSource(tmp_path / "x.wav"))
    assert (stats.windows, stats.skipped) == (9, 0)
    with pytest.raises(AudioError, match="no such file"):
        run(FileSource(tmp_path / "y.wav"))
