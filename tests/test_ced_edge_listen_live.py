"""Listening to sources that pause, are silent or too loud: gaps, times of day, and messages."""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from test_ced_edge_listen import Notebook, Pieces
from test_ced_edge_streaming import Loudness

from ced_edge.audio.level import Level
from ced_edge.audio.sources import Gap, Hint, Item
from ced_edge.errors import InputError
from ced_edge.runtime import listen as listen_module
from ced_edge.runtime.events import EventRule, Events
from ced_edge.runtime.level_watch import LevelWatch, faults
from ced_edge.runtime.listen import ListenStats, Show, listen
from ced_edge.runtime.show import show_in
from ced_edge.runtime.tagger import StreamingTagger, Tags, tag_stream

RATE = 16_000
Float32 = NDArray[np.float32]


def loud(seconds: float, rate_hz: int = RATE) -> Item:
    return np.full(round(seconds * rate_hz), 0.9, np.float32), rate_hz


def run(items: list[Item | None], show: Show | None = None, **options: float) -> tuple[ListenStats, Notebook]:
    """Listen to items, one per read; None is a read without anything."""
    book = Notebook()
    source = Pieces([[] if item is None else [item] for item in items])
    source.started_unix_s = 1_800_000_000.0
    stream = StreamingTagger(Loudness(0.2), hop_s=0.1)
    return listen(source, stream, Events(EventRule(), 2), show or book, **options), book


def test_no_event_crosses_a_gap() -> None:
    stats, book = run([loud(1.0), Gap(8.0), loud(0.5)])
    assert book.gaps == [(1.0, 9.0)]
    assert [(e.index, e.start_s, e.end_s) for e in book.events] == [(0, 0.0, 1.0), (0, 9.0, 9.5)]
    assert book.notes == ["no audio from 0:01.0 to 0:09.0: 8.0 s were lost"]
    assert (stats.gaps, stats.missing_s, stats.seconds) == (1, 8.0, 9.5)
    assert {t.start_s for t in book.seen} == {*(i / 10 for i in range(9)), *(9 + i / 10 for i in range(4))}


def test_an_event_before_a_gap_ends_there_although_its_windows_were_many() -> None:
    _, book = run([loud(3.0), Gap(1.25), (np.full(8_000, 0.001, np.float32), RATE)])
    assert [(e.index, e.start_s, e.end_s) for e in book.events] == [(0, 0.0, 3.0), (1, 4.25, 4.75)]


def test_the_audio_on_both_sides_of_a_gap_is_predicted_as_if_it_were_alone() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.uniform(-1, 1, n).astype(np.float32) for n in (30_000, 77_777)]
    _, book = run([(parts[0], 44_100), Gap(2.5), (parts[1][:5_000], 44_100), (parts[1][5_000:], 44_100)])
    expected: list[Tags] = []
    for part in parts:
        expected += tag_stream(StreamingTagger(Loudness(0.2), hop_s=0.1), [(part, 44_100)])
    assert all(np.array_equal(a.probs, b.probs) for a, b in zip(book.seen, expected, strict=True))
    later = round((30_000 / 44_100 + 2.5) * RATE) / RATE
    first = sum(t.start_s < 1 for t in book.seen)
    assert [t.start_s for t in book.seen[first:]] == [pytest.approx(later + t.start_s) for t in expected[first:]]


def test_the_clock_is_exact_after_many_gaps() -> None:
    """The time of every segment is that of its first sample, rounded once: the error does not grow."""
    rng, items, true_s = np.random.default_rng(1), [], 0.0
    starts = []
    for _ in range(300):
        frames, gap_s = int(rng.integers(1_000, 20_000)), float(rng.uniform(1, 10))
        starts.append(round(true_s * RATE) / RATE)
        items += [(np.full(frames, 0.9, np.float32), 44_100), Gap(gap_s)]
        true_s += frames / 44_100 + gap_s
    stats, book = run(items)
    begins = [b.start_s for a, b in itertools.pairwise(book.seen) if b.start_s > a.end_s]
    assert [0.0, *begins] == starts
    assert len(book.events) == stats.gaps == 300


def test_a_bad_sample_after_a_gap_has_the_time_of_the_stream() -> None:
    bad = np.zeros((4_800, 2), np.float32)
    bad[480, 1] = np.nan
    with pytest.raises(InputError, match=r"the sample at 10\.010 s \(index 480480\) is NaN"):
        run([(np.zeros((96_000, 2), np.float32), 48_000), Gap(8.0), (bad, 48_000)])


def test_json_has_the_time_of_day_of_live_sources(capsys: pytest.CaptureFixture[str]) -> None:
    run([loud(0.5), Gap(8.0), loud(0.5)], show_in(True, 1, 0.0, False))
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert {x["type"] for x in lines} == {"tags", "event", "gap"}
    for x in lines:
        for seconds, time in ((x["start_s"], x["time"]), (x["end_s"], x["end_time"])):
            parsed = datetime.datetime.fromisoformat(time)
            assert parsed.utcoffset() is not None
            assert parsed.timestamp() - 1_800_000_000 == pytest.approx(seconds, rel=0, abs=0.001)
    (gap,) = [x for x in lines if x["type"] == "gap"]
    assert (gap["start_s"], gap["end_s"]) == (0.5, 8.5)


def test_a_source_that_is_quiet_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(100.0, 0.3)

    class Time:
        monotonic = staticmethod(lambda: next(ticks))

    monkeypatch.setattr(listen_module, "time", Time)
    _, book = run([None] * 20 + [loud(0.3)] + [None] * 9 + [loud(0.3)] + [None] * 12 + [loud(0.3)], quiet_after_s=3.0)
    assert [note.split(",")[0].split(":")[0] for note in book.notes] == [
        "no audio for 3 s", "the audio continues", "no audio for 3 s", "the audio continues"
    ]  # fmt: skip
    _, book = run([loud(0.3)] + [None] * 12 + [Gap(3.3), loud(0.3)], quiet_after_s=3.0)
    assert [note[:12] for note in book.notes] == ["no audio for", "no audio fro"]


def test_a_hint_of_the_source_is_shown() -> None:
    _, book = run([loud(0.3), Hint("is it 48000 Hz?"), loud(0.3)])
    assert book.notes == ["is it 48000 Hz?"]
    assert len(book.seen) == 5


ZEROS, CLIPPED, FINE = Level(-math.inf, -math.inf, False), Level(-3.0, 0.0, True), Level(-20.0, -9.0, False)


def windows(levels: list[Level], hop_s: float = 1.0) -> Iterator[Tags]:
    """Windows of 2 s."""
    for i, level in enumerate(levels):
        yield Tags(i * hop_s, i * hop_s + 2, np.zeros(2, np.float32), level)


def test_zeros_and_clipping_are_reported_when_they_begin_and_end() -> None:
    watch = LevelWatch()
    levels = [FINE, ZEROS, ZEROS, ZEROS, FINE, CLIPPED, CLIPPED, FINE]
    assert [watch.push(t) for t in windows(levels)] == [
        [],
        ["digital zeros since 0:01.0: is the microphone muted, or not connected?"],
        [],
        [],
        ["no more digital zeros from 0:05.0 on"],
        ["clipped since 0:05.0: lower the recording level (or --gain)"],
        [],
        ["no longer clipped from 0:08.0 on"],
    ]


def test_a_fault_that_comes_and_goes_is_not_reported_each_time() -> None:
    watch = LevelWatch()
    found = [text for t in windows([CLIPPED, FINE] * 500) for text in watch.push(t)]
    assert len(found) == pytest.approx(2 * 1_000 / 10, abs=4)  # once in 10 s
    assert [text.startswith("clipped since") for text in found[:4]] == [True, False, True, False]
    # One that stays is reported after the pause, with the time of its beginning.
    watch = LevelWatch()
    found = [text for t in windows([ZEROS, FINE, *[ZEROS] * 20]) for text in watch.push(t)]
    assert found[2:] == ["digital zeros since 0:02.0: is the microphone muted, or not connected?"]


def test_the_faults_of_a_file() -> None:
    assert faults(list(windows([FINE, ZEROS, ZEROS, CLIPPED]))) == [
        "digital zeros in 2 of 4 windows, the first at 0:01.0",
        "clipped in 1 of 4 windows, the first at 0:03.0",
    ]
    assert faults(list(windows([ZEROS]))) == ["digital zeros"]
    assert faults(list(windows([FINE]))) == []
