"""What `pack` reports about odd files: the same from several processes as from one, and once per file."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ced_edge.audio.clips import read_manifest
from distill.packing.pack import PackConfig, pack

RATE = 16_000


def stereo_whose_channels_cancel(seconds: float) -> np.ndarray:
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)
    return np.stack([wave, -wave], axis=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_each_odd_file_is_reported_once(tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "in"
    folder.mkdir()
    soundfile.write(folder / "cancelled.wav", stereo_whose_channels_cancel(25.0), RATE)  # three segments
    soundfile.write(folder / "good.wav", stereo_whose_channels_cancel(25.0)[:, 0], RATE)
    data = (folder / "good.wav").read_bytes()
    (folder / "joined.wav").write_bytes(data + data)
    (folder / "open.wav").write_bytes(data[:40] + b"\0\0\0\0" + data[44:])  # the recorder was never closed
    pack(read_manifest(folder), tmp_path / "out", PackConfig(workers=workers))
    reported = sorted(m.removeprefix(str(folder)) for m in caplog.messages)
    assert len(reported) == 3
    assert reported[0].startswith("/cancelled.wav: its channels cancel each other")
    assert reported[1] == "/joined.wav: holds 2 sounds, one after the other: all are used"
    assert reported[2] == "/open.wav: its header says 0.000 s, but it holds 25.000 s: these are used"
