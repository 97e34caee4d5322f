"""Time is what the container says: gaps, late starts, timestamps that go back, and broken ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ced_edge.arrays import Float32
from ced_edge.audio.base import AudioError
from ced_edge.audio.read import decode, duration_s, load, stream

RATE = 16_000
FRAME = 4_096  # that of the encoder of alac
PART_S = 1.024
NOISE = np.random.default_rng(0).integers(-9_000, 9_000, 8 * RATE).astype(np.int16)


def write(
    path: Path, starts_s: Sequence[float], part_s: float = PART_S, codec: str = "pcm_s16le", picture: bool = False
) -> Path:
    """Parts of NOISE, each of `part_s`, at these times: the timestamps jump between them."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(path), "w", format="mpegts" if path.suffix == ".ts" else None) as container:
        video: Any = container.add_stream("mpeg4", rate=10) if picture else None
        sound: Any = container.add_stream(codec, rate=RATE, layout="mono")
        sound.time_base = Fraction(1, RATE)
        if video is not None:
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            for _ in range(30):
                image = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
                container.mux(video.encode(image))
            container.mux(video.encode(None))
        cut_up = av.AudioResampler(format=sound.codec_context.format, layout="mono", rate=RATE)
        n = round(part_s * RATE)
        for k, start_s in enumerate(starts_s):
            for i in range(0, n, FRAME):
                samples = NOISE[k * n + i : k * n + min(i + FRAME, n)]
                frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
                frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
                frame.pts = round(start_s * RATE) + i
                for one in cut_up.resample(frame):
                    container.mux(sound.encode(one))
        container.mux(sound.encode(None))
    return path


def expected(starts_s: Sequence[float], part_s: float = PART_S) -> Float32:
    """The parts at their times, and silence between them. A part never begins before the end of the one before."""
    n, found = round(part_s * RATE), np.zeros(0, np.float32)
    for k, start_s in enumerate(starts_s):
        step = round(start_s * RATE) - len(found)
        found = np.concatenate([found, np.zeros(step if step > 0.1 * RATE else 0, np.float32)])
        found = np.concatenate([found, NOISE[k * n : (k + 1) * n] / np.float32(32_768)])
    return found


def near(found: Float32, wanted: Float32) -> None:
    """Timestamps of mkv are whole milliseconds, so a part may be a few samples off."""
    assert abs(len(found) - len(wanted)) <= 20
    first = [int(np.flatnonzero(x)[0]) for x in (found, wanted)]
    assert abs(first[0] - first[1]) <= 16
    assert abs(np.count_nonzero(found) - np.count_nonzero(wanted)) <= 20


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("starts_s", [(0, 3.0), (0, 1.5, 4.25), (0, 1.064, 2.128), (0, 61.0)])
def test_a_gap_is_silence_of_its_length(
    tmp_path: Path, suffix: str, starts_s: Sequence[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = write(tmp_path / f"a.{suffix}", starts_s, codec="alac" if suffix == "mp4" else "pcm_s16le")
    wanted = expected(starts_s)
    found = decode(path)[0][:, 0]
    near(found, wanted)
    if suffix == "mp4":  # which has exact timestamps
        np.testing.assert_array_equal(found, wanted)
    assert len(caplog.records) == (starts_s[1] > 1.1)
    assert all("taken as silence" in r.getMessage() and str(path) in r.getMessage() for r in caplog.records)
    assert duration_s(path) == pytest.approx(len(found) / RATE, abs=0.002)
    assert sum(len(piece) for piece, _ in stream(path)) == len(found)
    edges = [0.0, 0.7, 1.3, 1.9, 2.6001, 3.7, None]
    for a, b in itertools.pairwise(edges):
        if (a or 0.0) * RATE < len(found):
            part = load(path, RATE, a or 0.0, b)
            np.testing.assert_array_equal(part, found[round((a or 0) * RATE) : None if b is None else round(b * RATE)])


@settings(max_examples=25)
@given(
    steps=st.lists(st.sampled_from([0.0, 0.05, 0.2, 1.0, 2.5]), min_size=1, max_size=4),
    edges=st.tuples(st.integers(0, 4_000), st.integers(0, 4_000)),
    suffix=st.sampled_from(["mp4", "mkv", "webm", "ts"]),
)
def test_a_part_is_a_slice_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, steps: list[float], edges: tuple[int, int], suffix: str
) -> None:
    starts = [0.0]
    for step in steps:
        starts.append(starts[-1] + PART_S + step)
    path = tmp_path_factory.mktemp("time") / f"a.{suffix}"
    write(path, starts, codec={"mp4": "alac", "mkv": "flac", "webm": "libopus", "ts": "mp2"}[suffix])
    whole = load(path, RATE)
    a, b = sorted(edges)
    part = whole[a * RATE // 1_000 : b * RATE // 1_000]
    if len(part):
        found = load(path, RATE, a / 1_000, b / 1_000)
        assert abs(len(found) - len(part)) <= 1  # rounding to the rate of the track
        if suffix in ("mp4", "mkv"):  # the others are lossy, and opus has 48 kHz
            np.testing.assert_array_equal(found, part)


@pytest.mark.parametrize("suffix", ["mov", "mkv", "mp4"])
def test_a_track_that_starts_after_the_picture(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    codec = "alac" if suffix == "mp4" else "pcm_s16le"
    path = write(tmp_path / f"a.{suffix}", [1.5], codec=codec, picture=True)
    near(decode(path)[0][:, 0], expected([1.5]))
    assert duration_s(path) == pytest.approx(1.5 + PART_S, abs=0.02)
    assert "no sound from 0.000 s to 1.5" in caplog.text
    assert np.count_nonzero(load(path, RATE, 0.0, 1.49)) == 0
    assert np.count_nonzero(load(path, RATE, 1.51, 1.6)) > 1_000


def test_the_first_track_sets_the_clock(tmp_path: Path) -> None:
    """A capture of a running stream does not begin at 0 s."""
    path = write(tmp_path / "a.ts", [100.0, 103.0], codec="mp2")
    assert duration_s(path) == pytest.approx(4.0, abs=0.1)
    found = decode(path)[0][:, 0]
    assert len(found) == pytest.approx(4 * RATE, abs=0.1 * RATE)
    assert np.abs(found[round(1.2 * RATE) : round(2.8 * RATE)]).max() == 0


def test_joined_mpeg_streams_lose_no_sound(tmp_path: Path) -> None:
    """The second one's timestamps begin again, or far ahead: another clock begins."""
    later, first = write(tmp_path / "b.ts", [5_000.0], codec="mp2"), write(tmp_path / "a.ts", [10.0], codec="mp2")
    one_s = len(decode(first)[0]) / RATE
    for parts in ([first, first], [first, later], [later, first], [first, later, first]):
        path = tmp_path / "joined.ts"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        assert len(decode(path)[0]) / RATE == pytest.approx(one_s * len(parts), abs=0.15)
        assert duration_s(path) == pytest.approx(one_s * len(parts), abs=0.15)


def test_overlapping_timestamps_lose_no_sound(tmp_path: Path) -> None:
    """Each part begins before the end of the one before. The gap after them is shorter by that."""
    parts = [write(tmp_path / f"{i}.ts", [start_s], codec="mp2") for i, start_s in enumerate((0.0, 0.4, 0.8, 5.0))]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts[:3]))
    one_s = len(decode(parts[0])[0]) / RATE
    assert len(decode(path)[0]) / RATE == pytest.approx(3 * one_s, abs=0.15)
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert len(decode(path)[0]) / RATE == pytest.approx(5.0 + one_s, abs=0.15)
    assert duration_s(path) == pytest.approx(5.0 + one_s, abs=0.15)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_jump_of_years_is_an_error_and_takes_no_memory(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", [0.0, 1e5], codec="alac" if suffix == "mp4" else "pcm_s16le")
    for use in (decode, duration_s, lambda p: load(p, RATE, 2.0, 3.0)):
        with pytest.raises(AudioError, match=r"broken timestamps: they jump by 99,999 s at 1\.024 s"):
            use(path)


@pytest.mark.parametrize(
    ("name", "seconds", "silent"),
    [("gap_6s.mkv", 14.0, (4.3, 10.0)), ("audio_starts_late.mp4", 6.0, (0.0, 1.9)), ("camera.mts", 4.096, None)],
)
def test_the_shared_files(shared: Path, name: str, seconds: float, silent: tuple[float, float] | None) -> None:
    path = shared / "cases" / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    wave, rate_hz = decode(path)
    assert len(wave) / rate_hz == pytest.approx(seconds, abs=0.01)
    assert duration_s(path) == pytest.approx(seconds, abs=0.01)
    if silent is not None:
        assert np.abs(load(path, RATE, *silent)).max() == 0
        assert np.abs(load(path, RATE, silent[1] + 0.3)).max() > 0.01
