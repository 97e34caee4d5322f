"""`ced-edge tag --json` on files with wrong headers, gaps and pipes: seconds, notices and exit codes."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Call, refused
from tiny_bundle import shared_bundle

from ced_edge.arrays import Float32
from ced_edge.audio.base import AUDIO_SUFFIXES
from ced_edge.audio.clips import read_manifest

RATE = 16_000
WAVE = np.random.default_rng(0).uniform(-0.4, 0.4, 4 * RATE).astype(np.float32)


def encoded(format: str, wave: Float32 = WAVE, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format=format, subtype=subtype)
    return buffer.getvalue()


def seconds(call: Call, path: Path) -> tuple[float, str]:
    code, out, err = call("tag", path, "--bundle", shared_bundle("waveform").folder, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["windows"][-1]["end_s"] == found["seconds"]
    return found["seconds"], err


def test_a_wav_that_was_never_closed(tmp_path: Path, call: Call) -> None:
    wav = bytearray(encoded("WAV"))
    wav[40:44] = bytes(4)
    (tmp_path / "a.wav").write_bytes(wav)
    length_s, err = seconds(call, tmp_path / "a.wav")
    assert length_s == 4.0
    assert err.count("its header says 0.000 s, but it holds 4.000 s") == 1


def test_joined_files(tmp_path: Path, call: Call) -> None:
    for format in ("OGG", "FLAC"):
        (tmp_path / "a").write_bytes(encoded(format) * 2)
        length_s, err = seconds(call, tmp_path / "a")
        assert length_s == pytest.approx(8.0, abs=0.001)
        assert err.count("holds 2 sounds") == 1


def test_channels_that_cancel(tmp_path: Path, call: Call) -> None:
    (tmp_path / "a.wav").write_bytes(encoded("WAV", np.stack([WAVE, -WAVE], 1)))
    (tmp_path / "b.wav").write_bytes(encoded("WAV"))
    code, out, err = call(
        "tag", tmp_path / "a.wav", tmp_path / "b.wav", "--bundle", shared_bundle("waveform").folder, "--json"
    )
    assert code == 0
    assert err.count("its channels cancel each other") == 1
    a, b = map(json.loads, out.splitlines())
    assert a["tags"] == b["tags"]


def test_samples_far_beyond_full_scale(tmp_path: Path, call: Call) -> None:
    (tmp_path / "a.wav").write_bytes(encoded("WAV", 32_768 * WAVE, "FLOAT"))
    result = call("tag", tmp_path / "a.wav", "--bundle", shared_bundle("waveform").folder)
    refused((result[0], result[1], result[2]), 1, "1 of 1 files could not be tagged")
    assert "a.wav: the sample at 0.000 s (index 0) is" in result[2]
    assert "divide 16-bit ones by 32768" in result[2]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe(tmp_path: Path, call: Call) -> None:
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(encoded("MP3")), daemon=True).start()
    assert seconds(call, tmp_path / "pipe")[0] == pytest.approx(4.0, abs=0.05)


def test_recordings_of_cameras_are_found_in_folders(tmp_path: Path) -> None:
    names = [f"a.{suffix}" for suffix in ("flv", "m2ts", "mts", "ts", "tta")]
    for name in names:
        (tmp_path / name.upper()).touch()
        assert Path(name).suffix in AUDIO_SUFFIXES
    assert [clip.id for clip in read_manifest(tmp_path)] == [name.upper() for name in names]


@pytest.mark.parametrize(
    ("name", "length_s"),
    [("mp3_vbr_no_header.mp3", 20.036), ("gap_6s.mkv", 14.0), ("audio_starts_late.mp4", 6.0), ("camera.mts", 4.096)],
)
def test_the_shared_files(shared: Path, call: Call, name: str, length_s: float) -> None:
    path = shared / "cases" / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    if not name.endswith(".mp3"):
        pytest.importorskip("av", reason="PyAV is not installed")
    assert seconds(call, path)[0] == pytest.approx(length_s, abs=0.01)
