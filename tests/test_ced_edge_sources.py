"""Live sources: raw PCM through a pipe, and a microphone."""

from __future__ import annotations

import io
import os
import queue
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from test_ced_edge_ffmpeg import record

from ced_edge.arrays import Float32
from ced_edge.audio import sources
from ced_edge.audio.microphone import Microphone
from ced_edge.audio.sources import FileSource, PcmSource, PieceQueue
from ced_edge.errors import CedEdgeError, InputError

RATE = 16_000


def read_all(source: Any) -> Float32:
    blocks: list[Float32] = []
    while (pieces := source.read(5.0)) is not None:
        blocks += [samples for samples, _ in pieces]
    return np.concatenate(blocks)


@pytest.mark.parametrize(("format", "dtype", "scale"), [("s16le", "<i2", 32_768), ("f32le", "<f4", 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_raw_samples_through_a_pipe(format: str, dtype: str, scale: int, channels: int) -> None:
    x = np.random.default_rng(1).uniform(-1, 1, (5_000, channels))
    raw = (x * scale * 0.99).astype(dtype)
    back, front = os.pipe()

    def write() -> None:
        with os.fdopen(front, "wb", buffering=0) as f:
            data = raw.tobytes()
            for i in range(0, len(data), 997):  # never on a frame's border
                f.write(data[i : i + 997])
            f.write(b"\x01")  # a part of a frame at the end is nothing

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(back, "rb") as pipe:
        received = read_all(PcmSource(pipe, RATE, channels, format))
    writer.join()
    assert received.shape == x.shape
    np.testing.assert_array_equal(received, (raw / scale).astype(np.float32))


def test_pieces_are_short_so_that_answers_need_not_wait() -> None:
    source = PcmSource(io.BytesIO(bytes(2 * RATE)), RATE, 1, "s16le")
    while (pieces := source.read(5.0)) is not None:
        assert all(len(x) <= RATE // 10 for x, _ in pieces)


@pytest.mark.parametrize("raises", [True, False])
def test_a_pipe_that_does_not_block_is_waited_for(raises: bool) -> None:
    back, front = os.pipe()
    os.set_blocking(back, False)

    class Raises:
        """A pipe that says in the other way that nothing is there."""

        def fileno(self) -> int:
            return back

        def read(self, n: int) -> bytes:
            return os.read(back, n)

    with os.fdopen(back, "rb") as pipe:
        source = PcmSource(Raises() if raises else pipe, RATE, 1, "s16le")
        for _ in range(3):
            assert source.read(0.05) == []
            os.write(front, bytes(200))
            pieces = source.read(5.0)
            assert pieces is not None
            assert sum(len(x) for x, _ in pieces) == 100
        os.close(front)
        assert source.read(5.0) is None


def test_a_container_on_stdin_is_not_taken_for_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(100), RATE)
    source = PcmSource(io.BytesIO((tmp_path / "x.wav").read_bytes()), RATE, 1, "s16le")
    with pytest.raises(InputError, match="holds an audio file, not raw PCM"):
        read_all(source)


def test_unknown_pcm() -> None:
    with pytest.raises(InputError, match="unknown PCM format 'u8': choose one of s16le, f32le"):
        PcmSource(io.BytesIO(), RATE, 1, "u8")


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Pipe:
    """A pipe into which the test puts audio, and the time that passes before; so audio and clock are in step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, piece_s: float = 0.1) -> None:
        self.clock, self._piece_s = Clock(), piece_s
        self._waits_s: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        monkeypatch.setattr(sources, "time", self.clock)
        monkeypatch.setattr(sources, "PIECE_S", piece_s)
        self.source = PcmSource(self, RATE, 1, "s16le")

    def read(self, n: int) -> bytes:
        wait_s = self._waits_s.get()
        if wait_s is None:
            return b""
        self.clock.now += wait_s
        return bytes(n)

    def write(self, seconds: float, pace: float) -> None:
        """So much audio, `pace` times as fast as the clock."""
        for _ in range(round(seconds / self._piece_s)):
            self._waits_s.put(self._piece_s / pace)

    def run(self, seconds: float, pace: float) -> set[bool]:
        """Write, and read each piece as it comes; whether the source was live meanwhile."""
        seen = set()
        for _ in range(round(seconds / self._piece_s)):
            self.write(self._piece_s, pace)
            assert self.source.read(5.0)
            seen.add(self.source.live)
        return seen

    def close(self) -> None:
        self._waits_s.put(None)
        assert self.source.read(5.0) is None


@pytest.mark.parametrize(("pace", "live"), [(1.0, True), (0.9, True), (4.0, False)])
def test_a_pipe_that_runs_ahead_of_the_clock_is_not_live(
    monkeypatch: pytest.MonkeyPatch, pace: float, live: bool
) -> None:
    pipe = Pipe(monkeypatch)
    assert not pipe.source.live
    assert pipe.run(4.8 * pace, pace) == {False}  # nothing is known yet
    pipe.run(1, pace)
    assert pipe.run(40, pace) == {live}
    pipe.close()
    assert not pipe.source.live  # it cannot get further behind


def test_a_live_pipe_may_begin_with_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    assert pipe.run(6, 1e9) == {False}
    pipe.run(6, 1.0)
    assert pipe.run(20, 1.0) == {True}
    pipe.clock.now += 8  # the network hangs, and then all comes at once
    pipe.run(8, 1e9)
    pipe.run(6, 1.0)
    assert pipe.run(20, 1.0) == {True}
    pipe.close()


def test_a_sound_card_may_be_fast_for_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch, piece_s=1.0)
    pipe.run(10, 1.0002)
    assert pipe.run(24 * 3_600, 1.0002) == {True}
    pipe.close()


def test_a_pipe_whose_writer_waits_for_us_may_be_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    pipe.run(10, 1.0)
    assert pipe.source.live
    pipe.write(31, 1.0)
    assert not wait_while(lambda: pipe.source.live)
    assert pipe.source.read(5.0)
    assert not pipe.source.live  # the pace was ours
    while pipe.source.read(0.1):
        pass
    pipe.run(6, 1.0)
    assert pipe.source.live
    pipe.close()


def wait_while(on: Callable[[], bool], limit_s: float = 5.0) -> bool:
    """Whether it is still on at the end."""
    end_s = time.monotonic() + limit_s
    while on() and time.monotonic() < end_s:
        time.sleep(0.001)
    return on()


def test_what_was_received_before_an_error_is_not_lost() -> None:
    waiting, piece = PieceQueue(), (np.zeros(1_600, np.float32), RATE)
    for _ in range(3):
        waiting.put(piece)
    waiting.end(InputError("torn"))
    assert not waiting.live
    assert waiting.read(5.0) == [piece] * 3
    with pytest.raises(InputError, match="torn"):
        waiting.read(5.0)


def open_files() -> list[str]:
    return [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if os.path.lexists(fd)]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of open files on this system")
@pytest.mark.parametrize("suffix", [".wav", ".m4a"])
def test_a_closed_file_source_holds_no_file_open(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    wave = np.zeros(2 * (1 << 18), np.float32)
    if suffix == ".wav":
        soundfile.write(path, wave, RATE)
    else:
        record(path, "aac", wave, RATE)
    source = FileSource(path)
    assert source.read(0.0)
    assert str(path) in open_files()
    source.close()
    assert str(path) not in open_files()
    assert source.read(0.0) is None
    FileSource(tmp_path / "missing.wav").close()  # nothing was opened


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A sounddevice with one microphone of 44.1 kHz."""

    class InputStream:
        def __init__(self, **options: Any) -> None:
            self.options, self.closed, self.started = options, False, False
            fake.stream = self

        def start(self) -> None:
            self.started = True

        def close(self) -> None:
            self.closed = True
            self.options["finished_callback"]()

    class PortAudioError(Exception):
        pass

    def query_devices(name: Any, kind: str) -> dict[str, Any]:
        if name not in (None, 3, "USB"):
            raise ValueError(f"No {kind} device matching {name!r}\n  see the list")
        return {"default_samplerate": 44_100.0}

    fake: Any = types.ModuleType("sounddevice")
    fake.InputStream, fake.PortAudioError, fake.query_devices = InputStream, PortAudioError, query_devices
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def test_a_microphone_from_opening_to_closing(portaudio: Any) -> None:
    mic = Microphone("3")
    options = portaudio.stream.options
    assert (options["device"], options["samplerate"], options["channels"]) == (3, 44_100, 1)
    assert portaudio.stream.started
    buffer = np.full((4_410, 1), 0.25, np.float32)
    options["callback"](buffer, 4_410, None, types.SimpleNamespace(input_overflow=False))
    options["callback"](buffer, 4_410, None, types.SimpleNamespace(input_overflow=True))
    buffer[:] = 9  # PortAudio uses it again
    pieces = mic.read(1.0)
    assert pieces is not None
    assert [(x.shape, x.max(), rate) for x, rate in pieces] == [((4_410, 1), 0.25, 44_100)] * 2
    assert mic.overflows == 1
    assert mic.live
    assert mic.read(0.01) == []
    mic.close()
    assert portaudio.stream.closed
    assert mic.read(1.0) is None


def test_a_microphone_that_nobody_reads_blocks_nothing(portaudio: Any) -> None:
    mic = Microphone()
    callback, piece = portaudio.stream.options["callback"], np.zeros((4_410, 1), np.float32)
    for _ in range(400):
        callback(piece, 4_410, None, types.SimpleNamespace(input_overflow=False))
    assert mic.overflows == pytest.approx(100, abs=1)
    mic.close()


@pytest.mark.parametrize("pieces", [0, 10, 400])
def test_a_microphone_that_goes_away_is_reported(portaudio: Any, pieces: int) -> None:
    mic = Microphone()
    options, piece = portaudio.stream.options, np.zeros((4_410, 1), np.float32)
    for _ in range(pieces):
        options["callback"](piece, 4_410, None, types.SimpleNamespace(input_overflow=False))
    options["finished_callback"]()
    assert not mic.live  # nothing it gave may be skipped for the sake of what will not come
    received = mic.read(1.0) if pieces else []
    assert received is not None
    assert len(received) + mic.overflows == pieces
    with pytest.raises(CedEdgeError, match="the microphone has gone: plug it in and start again"):
        mic.read(1.0)
    mic.close()


def test_no_microphone(portaudio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no microphone 'HDMI' \(No input device .*see the list\): `python -m sound"):
        Microphone("HDMI")

    def none(name: Any, kind: str) -> Any:
        raise portaudio.PortAudioError("Error querying device -1")

    portaudio.query_devices = none
    with pytest.raises(InputError, match=r"no microphone \(Error querying device -1\)"):
        Microphone()
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(InputError, match=r"pip install 'ced-edge\[mic\]'"):
        Microphone()


def test_a_microphone_that_cannot_start_is_closed(portaudio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Any) -> None:
        raise portaudio.PortAudioError("Device unavailable")

    monkeypatch.setattr(portaudio.InputStream, "start", start)
    with pytest.raises(InputError, match=r"no microphone \(Device unavailable\)"):
        Microphone()
    assert portaudio.stream.closed


def test_no_portaudio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(InputError, match=r"needs PortAudio \(PortAudio library not found\): apt install libportaudio2"):
        Microphone()
