"""Live sources: raw PCM through a pipe, and a microphone."""

from __future__ import annotations

import io
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from test_ced_edge_ffmpeg import record

from ced_edge.arrays import Float32
from ced_edge.audio.microphone import Microphone
from ced_edge.audio.sources import FileSource, Gap, Hint, PcmSource, PieceQueue
from ced_edge.errors import CedEdgeError, InputError

RATE = 16_000


def read_all(source: Any) -> tuple[Float32, list[Hint]]:
    blocks: list[Float32] = []
    hints: list[Hint] = []
    while (items := source.read(5.0)) is not None:
        blocks += [item[0] for item in items if isinstance(item, tuple)]
        hints += [item for item in items if isinstance(item, Hint)]
    return np.concatenate(blocks), hints


def stored(x: NDArray[np.float64], format: str) -> tuple[bytes, Float32]:
    """Samples as raw bytes, and what these bytes mean, by the definition of the format."""
    if format == "f32le":
        return x.astype("<f4").tobytes(), x.astype(np.float32)
    bits = int(format[1:3])
    whole = np.rint(x * 0.99 * 2 ** (bits - 1)).astype(int)
    raw = b"".join(int(n).to_bytes(bits // 8, "little", signed=True) for n in whole.ravel())
    return raw, (whole / 2 ** (bits - 1)).astype(np.float32)


@pytest.mark.parametrize("format", ["s16le", "s24le", "s32le", "f32le"])
@pytest.mark.parametrize("channels", [1, 3])
def test_raw_samples_through_a_pipe(format: str, channels: int) -> None:
    x = np.random.default_rng(1).uniform(-1, 1, (5_000, channels))
    x[:3, 0] = -1, 0, 1
    data, expected = stored(x, format)
    back, front = os.pipe()

    def write() -> None:
        with os.fdopen(front, "wb", buffering=0) as f:
            for i in range(0, len(data), 997):  # never on a frame's border
                f.write(data[i : i + 997])
            f.write(b"\x01")  # a part of a frame at the end is nothing

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(back, "rb") as pipe:
        received, (hint,) = read_all(PcmSource(pipe, RATE, channels, format))
    writer.join()
    np.testing.assert_array_equal(received, expected)
    frame = channels * {"s16le": 2, "s24le": 3}.get(format, 4)
    assert hint.text == f"the pipe ended within a frame: 1 of its {frame} bytes were left out"


def test_pieces_are_short_so_that_answers_need_not_wait() -> None:
    source = PcmSource(io.BytesIO(bytes(2 * RATE)), RATE, 1, "s16le")
    while (items := source.read(5.0)) is not None:
        assert all(len(item[0]) <= RATE // 10 for item in items if isinstance(item, tuple))


def read_some(source: PcmSource) -> int:
    """The number of samples that arrive before a pause."""
    samples = 0
    while items := source.read(5.0 if not samples else 0.05):
        samples += sum(len(item[0]) for item in items if isinstance(item, tuple))
    return samples


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
        os.write(front, bytes(4_096))  # so many are read first, to see whether they are an encoded file
        assert read_some(source) == 2_048
        for _ in range(3):
            assert source.read(0.05) == []
            os.write(front, bytes(200))
            assert read_some(source) == 100
        os.close(front)
        assert source.read(5.0) is None


@pytest.mark.parametrize("format", ["s16le", "f32le"])
def test_an_encoded_file_on_stdin_is_not_taken_for_samples(tmp_path: Path, format: str) -> None:
    soundfile.write(tmp_path / "x.mp3", np.random.default_rng(0).normal(0, 0.1, RATE), RATE)
    soundfile.write(tmp_path / "x.wav", np.zeros(100), RATE)
    for name, kind in (("x.mp3", "MP3"), ("x.wav", "WAV")):
        source = PcmSource(io.BytesIO((tmp_path / name).read_bytes()), RATE, 1, format)
        with pytest.raises(InputError, match=rf"stdin holds {kind}, not raw PCM: `ffmpeg -i - -f s16le .*converts it"):
            source.read(5.0)  # nothing was put before it


def test_unknown_pcm() -> None:
    with pytest.raises(InputError, match="unknown PCM format 'u8': choose one of s16le, s24le, s32le, f32le"):
        PcmSource(io.BytesIO(), RATE, 1, "u8")


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
    items: Any = mic.read(1.0)
    assert [(x.shape, x.max(), rate) for x, rate in items] == [((4_410, 1), 0.25, 44_100)] * 2
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
    *pieces, gap = mic.read(1.0) or []
    assert len(pieces) == 400 - mic.overflows
    assert isinstance(gap, Gap)  # what was lost stays in the time of the stream
    assert gap.seconds == pytest.approx(0.1 * mic.overflows)
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
    assert sum(isinstance(item, tuple) for item in received) + mic.overflows == pieces
    with pytest.raises(CedEdgeError, match="the microphone has gone: plug it in and start again"):
        mic.read(1.0)
    mic.close()


def test_no_microphone(portaudio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        CedEdgeError, match=r"no microphone 'HDMI' \(No input device .*see the list\): `python -m sound"
    ):
        Microphone("HDMI")

    def none(name: Any, kind: str) -> Any:
        raise portaudio.PortAudioError("Error querying device -1")

    portaudio.query_devices = none
    with pytest.raises(CedEdgeError, match=r"no microphone \(Error querying device -1\)"):
        Microphone()
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(InputError, match=r"pip install 'ced-edge\[mic\]'"):
        Microphone()


def test_a_microphone_that_cannot_start_is_closed(portaudio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Any) -> None:
        raise portaudio.PortAudioError("Device unavailable")

    monkeypatch.setattr(portaudio.InputStream, "start", start)
    with pytest.raises(CedEdgeError, match=r"no microphone \(Device unavailable\)"):
        Microphone()
    assert portaudio.stream.closed


def test_no_portaudio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(InputError, match=r"needs PortAudio \(PortAudio library not found\): apt install libportaudio2"):
        Microphone()
