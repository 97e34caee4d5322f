"""Files that were joined end to end: all are read, or a warning reports what is left out."""

from __future__ import annotations

import io
import logging
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from ced_edge.audio.joined import files_in, passed_over
from ced_edge.audio.read import decode, duration_s

RATE = 16_000


def noise(seconds: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


@pytest.mark.parametrize("format", ["AIFF", "AU", "W64", "CAF"])
@pytest.mark.parametrize("seconds", [(1.0, 0.5), (0.50003, 0.25, 1.0)])  # also an odd number of bytes
def test_all_of_joined_files_are_read(
    tmp_path: Path, format: str, seconds: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data, waves = b"", []
    for i, length in enumerate(seconds):
        path = tmp_path / f"{i}.{format.lower()}"
        soundfile.write(path, noise(length, i), RATE, format=format, subtype="PCM_24")
        data += path.read_bytes()
        waves.append(soundfile.read(path, dtype="float32")[0])
    path = tmp_path / f"all.{format.lower()}"
    path.write_bytes(data)
    found, rate_hz = decode(path)
    assert rate_hz == RATE
    np.testing.assert_array_equal(found[:, 0], np.concatenate(waves))
    assert caplog.messages == [f"{path}: holds {len(seconds)} sounds, one after the other: all are used"]
    assert duration_s(path) == len(found) / RATE


def test_a_change_of_rate_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    data = b""
    for rate_hz in (RATE, 44_100):
        soundfile.write(tmp_path / "a.wav", np.zeros((rate_hz, rate_hz // RATE), np.float32), rate_hz)
        data += (tmp_path / "a.wav").read_bytes()
    path = tmp_path / "both.wav"
    path.write_bytes(data)
    assert duration_s(path) == 2.0
    assert not caplog.messages
    assert len(decode(path)[0]) == 2 * RATE
    assert caplog.messages == [
        f"{path}: holds 2 sounds, one after the other: all are used",
        f"{path}: changes from 16000 Hz (channels: 1) to 44100 Hz (channels: 2), and is converted back",
    ]


@pytest.mark.parametrize("format", ["AIFF", "AU", "W64", "CAF"])
def test_bytes_behind_the_sound_are_no_sound(tmp_path: Path, format: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / f"a.{format.lower()}"
    soundfile.write(path, noise(0.5, 0), RATE, format=format)
    length = len(decode(path)[0])
    path.write_bytes(path.read_bytes() + b"a tag that a program has left")
    assert len(decode(path)[0]) - length < 16
    assert not caplog.messages


def encoded(path: Path, seed: int, codec: str, *flags: str) -> bytes:
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg")
    pytest.importorskip("av", reason="needs PyAV")
    soundfile.write(path.with_suffix(".wav"), noise(2.0, seed), RATE)
    command = ["ffmpeg", "-v", "error", "-y", "-i", path.with_suffix(".wav"), "-c:a", codec, *flags, path]
    subprocess.run(command, check=True)
    return path.read_bytes()


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("mp4", "aac"), ("flv", "aac"), ("tta", "tta")])
def test_joined_files_that_ffmpeg_passes_over_are_reported(
    tmp_path: Path, suffix: str, codec: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, both = tmp_path / f"one.{suffix}", tmp_path / f"both.{suffix}"
    both.write_bytes(encoded(one, 0, codec) + encoded(tmp_path / f"two.{suffix}", 1, codec))
    length = len(decode(one)[0])
    assert not caplog.messages
    assert abs(len(decode(both)[0]) - length) < RATE / 10
    assert f"{both}: holds 2 files, one after the other: only the first is used" in caplog.messages


def test_a_file_of_fragments_is_one_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoded(tmp_path / "a.mp4", 0, "aac", "-movflags", "frag_keyframe+empty_moov", "-frag_duration", "500000")
    decode(tmp_path / "a.mp4")
    assert not caplog.messages


@given(st.sampled_from([b"FORM", b".snd", b"riff", b"caff", b"\0\0\0\x08ftyp"]), st.binary(max_size=200))
def test_any_bytes_end_in_parts_of_the_file(mark: bytes, rest: bytes) -> None:
    f = io.BytesIO(mark + rest)
    size = len(mark) + len(rest)
    spans = list(files_in(f, size))
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert all(start < stop for start, stop in spans)
    assert spans[-1][1] == size
    assert all(passed_over(f, size, format) >= 0 for format in ("mov", "flv", "tta"))
