"""Rare kinds of good files: joined WAV files, GSM, 64-bit integers, formats without a length, MP3 without PyAV."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ced_edge.audio import sndfile
from ced_edge.audio.clips import read_manifest
from ced_edge.audio.containers import encoded_kind
from ced_edge.audio.read import decode, duration_s, load

RATE = 8_000
WAVE = np.random.default_rng(0).uniform(-0.4, 0.4, (3 * RATE, 1)).astype(np.float32)


def encoded(wave: np.ndarray, format: str, subtype: str, rate_hz: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate_hz, format=format, subtype=subtype)
    return buffer.getvalue()


class Pipe(io.RawIOBase):
    """Bytes that can be read once only."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # io accepts any writable buffer
        return self._data.readinto(buffer)


@pytest.mark.parametrize("subtypes", [("PCM_16", "PCM_16"), ("PCM_24", "FLOAT"), ("ULAW", "PCM_16", "IMA_ADPCM")])
def test_joined_wav_files(tmp_path: Path, subtypes: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    parts = [encoded(WAVE, "WAV", subtype) for subtype in subtypes]
    path = tmp_path / "a.wav"
    path.write_bytes(b"".join(parts))
    expected = np.concatenate([soundfile.read(io.BytesIO(p), dtype="float32", always_2d=True)[0] for p in parts])
    np.testing.assert_array_equal(decode(path)[0], expected)
    assert duration_s(path) == len(expected) / RATE
    assert f"holds {len(parts)} sounds" in caplog.text
    np.testing.assert_array_equal(load(path, RATE, 2.5, 3.5), expected[20_000:28_000, 0])


def test_a_part_of_gsm_which_cannot_seek(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(WAVE, "WAV", "GSM610"))
    np.testing.assert_array_equal(load(path, RATE, 1.0, 2.0), load(path, RATE)[RATE : 2 * RATE])


def test_integers_of_64_bits(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    samples = (WAVE[:, 0].astype(np.float64) * 2.0**63).astype("<i8").tobytes()
    header = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 8 * RATE, 8, 64)
    body = header + b"data" + struct.pack("<I", len(samples)) + samples
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    np.testing.assert_allclose(decode(tmp_path / "a.wav")[0], WAVE, atol=1e-7)


def test_a_pipe_with_a_wrong_size_raises_nothing_inside_of_libsndfile(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(encoded(WAVE, "W64", "PCM_16"))
    data[16:24] = bytes(8)  # a program that writes to a pipe does not know the size
    (tmp_path / "a.w64").write_bytes(data)
    found, _ = decode(io.BufferedReader(Pipe(bytes(data))))
    np.testing.assert_array_equal(found, decode(tmp_path / "a.w64")[0])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("codec", "name"), [("libopus", "a.webm"), ("aac", "a.mkv"), ("wmav2", "a.wma")])
def test_the_length_is_that_of_the_decoded_sound(tmp_path: Path, codec: str, name: str) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    path, rate_hz = tmp_path / name, 48_000
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        stream.bit_rate = 64_000
        cut_up = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate_hz)
        frame = av.AudioFrame.from_ndarray(WAVE.reshape(1, -1), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate_hz, 0
        for part in [*cut_up.resample(frame), None]:
            container.mux(stream.encode(part))
    assert duration_s(path) == len(decode(path)[0]) / rate_hz
    assert duration_s(path, exact=False) == pytest.approx(duration_s(path), abs=0.1)


def test_mp3_without_a_header_needs_no_pyav(tmp_path: Path) -> None:
    data = encoded(WAVE, "MP3", "MPEG_LAYER_III", 16_000)
    xing = max(data.find(b"Xing"), data.find(b"Info"))
    begin = data.rfind(b"\xff\xf3", 0, xing)
    path = tmp_path / "a.mp3"
    path.write_bytes(data[data.find(b"\xff\xf3", xing) :])
    assert 0 <= begin < xing
    with path.open("rb") as f:
        sound = sndfile.opened(str(path), path, f)
        assert sound is not None
        found = sum(map(len, sound.blocks()))
    assert 0 <= found - len(WAVE) <= 1_105 + 529 + 2 * 576


@pytest.mark.parametrize(("codec", "kind"), [("ac3", "AC-3"), ("eac3", "AC-3")])
@pytest.mark.parametrize("rate_hz", [32_000, 44_100, 48_000])
@pytest.mark.parametrize("bit_rate", [64_000, 192_000])
def test_ac3_is_no_pcm(codec: str, kind: str, rate_hz: int, bit_rate: int) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=codec) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        stream.bit_rate = bit_rate
        cut_up = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate_hz)
        frame = av.AudioFrame.from_ndarray(WAVE.reshape(1, -1), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate_hz, 0
        for part in [*cut_up.resample(frame), None]:
            container.mux(stream.encode(part))
    assert encoded_kind(buffer.getvalue()[:4_096]) == kind
    assert encoded_kind(b"\x0b\x77" + bytes(4_094)) is None


def test_a_warning_about_a_label_with_a_line_break_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.csv").write_bytes(b'filename,labels\r\n"a.wav","Foo\nbar"\r\n')
    read_manifest(tmp_path / "a.csv", labels_needed=False)
    assert "Foo bar (1)" in caplog.text
