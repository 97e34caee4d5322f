"""Files that come through a pipe: named pipes, a shell's `<(command)`, and streams that cannot seek."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ced_edge.audio import read
from ced_edge.audio.base import AudioError

RATE = 16_000
WAVE = np.random.default_rng(0).uniform(-0.4, 0.4, 2 * RATE).astype(np.float32)

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


def data(format: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, WAVE, RATE, format=format)
    return buffer.getvalue()


def m4a() -> bytes:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ipod") as container:
        sound = container.add_stream("alac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.rint(WAVE * 32_767).astype(np.int16)[None], format="s16p", layout="mono")
        frame.sample_rate = RATE
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return buffer.getvalue()


def feed(end: Path | int, content: bytes) -> None:
    def write() -> None:
        with open(end, "wb") as pipe:
            pipe.write(content)

    threading.Thread(target=write, daemon=True).start()


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "m4a"])
def test_a_file_through_every_kind_of_pipe(tmp_path: Path, format: str) -> None:
    content = m4a() if format == "m4a" else data(format)
    (tmp_path / "a.file").write_bytes(content)
    expected, _ = read.decode(tmp_path / "a.file")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    feed(fifo, content)
    np.testing.assert_array_equal(read.decode(fifo)[0], expected)
    feed(fifo, content)
    assert read.duration_s(fifo) == pytest.approx(2.0, abs=0.1)
    feed(fifo, content)
    np.testing.assert_array_equal(np.concatenate([piece for piece, _ in read.stream(fifo)]), expected)
    out, into = os.pipe()
    feed(into, content)
    with open(out, "rb") as stream:  # a stream that cannot seek, as stdin
        np.testing.assert_array_equal(read.load(stream, RATE), read.load(tmp_path / "a.file", RATE))


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="this system has no /dev/fd")
def test_the_substitution_of_a_shell(tmp_path: Path) -> None:
    out, into = os.pipe()
    feed(into, data("WAV"))
    try:
        assert len(read.load(Path(f"/dev/fd/{out}"), RATE)) == len(WAVE)
    finally:
        os.close(out)


def test_bad_pipes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for content, reason in (
        (b"", "no data came through the pipe"),
        (b"no sound at all" * 100, "not audio"),
    ):
        feed(fifo, content)
        with pytest.raises(AudioError) as caught:
            read.decode(fifo)
        assert str(caught.value) == f"cannot use {fifo}: {reason}"
    monkeypatch.setattr(read, "MAX_PIPE_BYTES", 1 << 16)
    out, into = os.pipe()
    feed(into, bytes(1 << 17))
    with open(out, "rb") as stream, pytest.raises(AudioError, match="came through the pipe: write it to a file first"):
        read.decode(stream)
