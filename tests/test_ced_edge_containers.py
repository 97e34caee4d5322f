"""Files whose headers are wrong, or that hold several sounds: all samples come back, and a notice reports it."""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ced_edge.arrays import Float32
from ced_edge.audio import containers
from ced_edge.audio.base import AudioError
from ced_edge.audio.mpeg import mpeg_frame
from ced_edge.audio.read import decode, duration_s, load

RATE = 16_000
NOISE = np.random.default_rng(0).uniform(-0.4, 0.4, 3 * RATE).astype(np.float32)
TONES = (0.3 * np.sin(np.cumsum(0.02 + 0.2 * np.arange(3 * RATE) / RATE / 3))).astype(np.float32)


@pytest.fixture(autouse=True)
def without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg reads some of these files as well, and would hide that libsndfile fails."""
    monkeypatch.setitem(sys.modules, "av", None)


def encoded(wave: Float32, format: str, subtype: str | None = None, rate_hz: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate_hz, format=format, subtype=subtype)
    return buffer.getvalue()


def own(data: bytes) -> Float32:
    """What libsndfile reads alone."""
    return np.asarray(soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0])


def ffmpeg(*args: str | Path) -> bytes:
    if shutil.which("ffmpeg") is None:
        pytest.skip("the program ffmpeg is not installed")
    run = ["ffmpeg", "-nostdin", "-v", "error", *map(str, args)]
    return subprocess.run(run, capture_output=True, check=True).stdout


def by_ffmpeg(path: Path) -> Float32:
    """The samples that the program ffmpeg decodes."""
    channels = soundfile_channels(path)
    return np.frombuffer(ffmpeg("-i", path, "-f", "f32le", "-"), "<f4").reshape(-1, channels)


def soundfile_channels(path: Path) -> int:
    return int(decode(path)[0].shape[1])


def check(path: Path, expected: Float32, rate_hz: int = RATE, atol: float = 0.0) -> None:
    """The file holds these samples, for every way of reading it."""
    found, found_hz = decode(path)
    assert (found.shape, found_hz) == (expected.shape, rate_hz)
    np.testing.assert_allclose(found, expected, atol=atol)
    assert duration_s(path) == len(expected) / rate_hz
    part = load(path, rate_hz, 0.7, 1.9)
    np.testing.assert_allclose(part, load(path, rate_hz)[round(0.7 * rate_hz) : round(1.9 * rate_hz)], atol=1e-6)


def wav(chunks: list[tuple[bytes, bytes, int | None]], riff: bytes = b"RIFF") -> bytes:
    """A WAV file of (name, content, size in the header or None for the true one)."""
    body = b"".join(name + struct.pack("<I", len(data) if size is None else size) + data for name, data, size in chunks)
    return riff + struct.pack("<I", min(len(body) + 4, 0xFFFFFFFF)) + b"WAVE" + body


PCM = np.rint(NOISE * 32_767).astype("<i2")
FMT = (b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16), None)
LIST = (b"LIST", b"INFOISFT\x06\0\0\0abcde\0", None)
DATA = PCM.tobytes()
WAVS = {
    "size 0": wav([FMT, (b"data", DATA, 0)]),
    "size 0 behind a list": wav([FMT, LIST, (b"data", DATA, 0)]),
    "size of a pipe": wav([FMT, (b"data", DATA, 0xFFFFFFFF)]),
    "size of arecord on a pipe": wav([FMT, (b"data", DATA, 0x80000000)]),
    "two chunks": wav([FMT, (b"data", DATA[:7_000], None), (b"data", DATA[7_000:], None)]),
    "two chunks, a list between": wav([FMT, (b"data", DATA[:7_000], None), LIST, (b"data", DATA[7_000:], None)]),
    "empty chunk in front": wav([FMT, (b"data", b"", None), LIST, (b"data", DATA, None)]),
    "size too small": wav([FMT, (b"data", DATA, 30_000)]),
    "size too large": wav([FMT, (b"data", DATA, 200_000)]),
    "odd chunk without padding": wav([FMT, (b"note", b"abc", None), (b"data", DATA, None)]),
    "odd chunk with padding": wav([FMT, (b"note", b"abc\0", 3), (b"data", DATA, None)]),
    "list behind": wav([FMT, (b"data", DATA, None), LIST]),
    "zeros behind": wav([FMT, (b"data", DATA, None)]) + bytes(5_000),
    "RF64": wav([(b"ds64", struct.pack("<QQQI", 0, len(DATA), 0, 0), None), FMT, (b"data", DATA, 0xFFFFFFFF)], b"RF64"),
    "RF64 without sizes": wav([(b"ds64", bytes(28), None), FMT, (b"data", DATA, 0xFFFFFFFF)], b"RF64"),
    "RF64 cut short": wav(
        [(b"ds64", struct.pack("<QQQI", 0, 1 << 40, 0, 0), None), FMT, (b"data", DATA, 0xFFFFFFFF)], b"RF64"
    ),
}
SILENT = (
    "odd chunk with padding",
    "list behind",
    "zeros behind",
    "RF64",
    "size of a pipe",
    "size of arecord on a pipe",
)


@pytest.mark.parametrize("kind", WAVS)
def test_wav_headers(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(WAVS[kind])
    decode(path)
    reported = [r.getMessage() for r in caplog.records if "its header says" in r.getMessage()]
    if "size" in kind and kind not in SILENT and "RF64" not in kind:
        assert len(reported) == 1
        assert f"{path}: its header says" in reported[0]
        assert "it holds 3.000 s" in reported[0]
    elif kind in SILENT:
        assert not reported
    check(path, PCM[:, None] / np.float32(32_768))


@pytest.mark.parametrize("subtype", sorted(soundfile.available_subtypes("WAV")))
def test_good_wav_files_of_every_codec(tmp_path: Path, subtype: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.wav"
    try:
        path.write_bytes(encoded(NOISE[:8_000], "WAV", subtype, 8_000))
    except soundfile.SoundFileError as e:
        pytest.skip(str(e))
    np.testing.assert_array_equal(decode(path)[0], own(path.read_bytes()))
    assert caplog.messages == []


def test_a_wav_that_was_cut_in_the_middle_of_a_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.wav").write_bytes(wav([FMT, (b"data", DATA, None)])[: 44 + 60_001])
    check(tmp_path / "a.wav", PCM[:30_000, None] / np.float32(32_768))
    assert "its header says 3.000 s, but it holds 1.875 s" in caplog.text


def test_a_wav_without_samples_stays_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav([FMT, (b"data", b"", None), LIST]))
    with pytest.raises(AudioError, match="no samples"):
        decode(tmp_path / "a.wav")


def without_xing(mp3: bytes) -> bytes:
    """Without the first frame, which holds the length. Encoders that write to a pipe cannot add it."""
    start = 10 + (mp3[8] << 7) + mp3[9] if mp3[:3] == b"ID3" else 0
    header = mp3[start : start + 60]  # low bit rates leave no room for it
    return mp3[start + (mpeg_frame(header) if b"Xing" in header or b"Info" in header else 0) :]


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_mp3_without_a_header(tmp_path: Path, rate_hz: int, channels: int, mode: str) -> None:
    # Quiet and loud in turn: a variable bit rate then has frames of very different sizes.
    t = np.arange(20 * rate_hz) / rate_hz
    wave = (np.random.default_rng(0).uniform(-0.5, 0.5, (len(t), channels)).T * (t % 10 < 2)).T.astype(np.float32)
    soundfile.write(tmp_path / "b.mp3", wave, rate_hz, bitrate_mode=mode, compression_level=0.7)
    data = without_xing((tmp_path / "b.mp3").read_bytes())
    path = tmp_path / "a.mp3"
    path.write_bytes(data)
    samples = 1_152 if rate_hz >= 32_000 else 576
    found, _ = decode(path)
    assert len(found) % samples == 0
    assert 0 <= len(found) - len(wave) <= 1_105 + 529 + 2 * samples
    assert duration_s(path) == len(found) / rate_hz
    part = load(path, rate_hz, 12.0, 13.0)
    np.testing.assert_allclose(part, load(path, rate_hz)[12 * rate_hz : 13 * rate_hz], atol=1e-5)
    expected = by_ffmpeg(path)
    assert found.shape == expected.shape
    assert np.corrcoef(found[:, 0], expected[:, 0])[0, 1] > 0.85  # at 24 kHz the two decoders differ


def test_mp3_kinds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mp3 = encoded(NOISE, "MP3")
    whole, path = own(mp3), tmp_path / "a.mp3"
    path.write_bytes(mp3)
    check(path, whole, atol=1e-6)
    assert not caplog.records
    for extra in (b"TAG" + bytes(125), b"APETAGEX" + bytes(300)):
        path.write_bytes(mp3 + extra)
        check(path, whole, atol=1e-6)
    assert not caplog.records
    path.write_bytes(mp3[: len(mp3) // 2])
    found = decode(path)[0]
    assert RATE < len(found) < 2 * RATE
    np.testing.assert_allclose(found[:-600], whole[: len(found) - 600], atol=1e-5)  # the start as before
    assert "its header says 3." in caplog.text
    caplog.clear()
    path.write_bytes(mp3 + mp3)
    found = decode(path)[0]
    assert len(found) == pytest.approx(6 * RATE, abs=2_500)
    np.testing.assert_allclose(found[: 3 * RATE - 1_000], whole[: 3 * RATE - 1_000], atol=1e-5)
    assert "its header says 3." in caplog.text
    path.write_bytes(without_xing(mp3)[500:])  # a capture begins in the middle of a frame
    assert len(decode(path)[0]) == pytest.approx(3 * RATE, abs=2_500)


def test_an_mp3_that_another_one_replaced_midway(tmp_path: Path) -> None:
    """libsndfile then seeks to a position behind the end."""
    path = tmp_path / "a.mp3"
    first, other = encoded(NOISE[:14_400].reshape(-1, 2), "MP3", rate_hz=24_000), encoded(NOISE, "MP3", rate_hz=48_000)
    path.write_bytes(first[:1_921] + other)
    with contextlib.suppress(AudioError):
        assert 0 < duration_s(path) < 2
    with contextlib.suppress(AudioError):
        assert len(load(path, RATE, 0.1, 0.2)) <= 0.1 * RATE
    assert len(load(path, RATE)) > 0


def test_mp2_without_a_header(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", NOISE, RATE)
    ffmpeg("-i", tmp_path / "a.wav", "-ar", "44100", "-b:a", "128k", tmp_path / "a.mp2")
    expected = by_ffmpeg(tmp_path / "a.mp2")
    found, rate_hz = decode(tmp_path / "a.mp2")
    assert (found.shape, rate_hz) == (expected.shape, 44_100)
    assert duration_s(tmp_path / "a.mp2") == len(found) / 44_100


def test_mp3_in_wav(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "b.wav", TONES, RATE)
    path = tmp_path / "a.wav"
    ffmpeg("-i", tmp_path / "b.wav", "-c:a", "libmp3lame", path)
    assert struct.unpack("<H", path.read_bytes()[20:22]) == (0x55,)
    check(path, by_ffmpeg(path), atol=2e-3)


def joined(format: str, subtype: str | None = None) -> tuple[bytes, Float32]:
    parts = [encoded(NOISE[: 2 * RATE], format, subtype), encoded(TONES, format, subtype)]
    return b"".join(parts), np.concatenate([own(part) for part in parts])


@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", None)])
def test_joined_files(tmp_path: Path, format: str, subtype: str | None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data, expected = joined(format, subtype)
    path = tmp_path / "a.ogg"
    path.write_bytes(data)
    decode(path)
    assert [r.getMessage() for r in caplog.records] == [f"{path}: holds 2 sounds, one after the other: all are used"]
    check(path, expected, atol=1e-6)


@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("FLAC", None), ("MP3", None)])
@pytest.mark.parametrize(("rate_hz", "channels"), [(48_000, 1), (16_000, 2), (8_000, 2)])
def test_the_second_sound_has_another_rate_or_channel_count(
    tmp_path: Path, format: str, subtype: str | None, rate_hz: int, channels: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    t = np.arange(2 * rate_hz) / rate_hz
    second = np.repeat(0.3 * np.sin(2 * np.pi * 440 * t)[:, None], channels, 1).astype(np.float32)
    path = tmp_path / "a.x"
    path.write_bytes(encoded(NOISE, format, subtype) + encoded(second, format, subtype, rate_hz))
    found, found_hz = decode(path)
    assert (found_hz, found.shape[1]) == (RATE, 1)
    assert len(found) == pytest.approx(5 * RATE, abs=2_500 if format == "MP3" else 2)
    assert duration_s(path) == len(found) / RATE
    place = np.arange(4 * RATE, 4 * RATE + 8_000)
    expected = np.sin(2 * np.pi * 440 * np.arange(8_000) / RATE + np.arange(0, 6.3, 0.05)[:, None])
    best = max(np.corrcoef(found[place, 0], row)[0, 1] for row in expected)
    assert best > 0.98
    assert f"to {rate_hz} Hz (channels: {channels})" in caplog.text


def flac_with(samples: int, data: bytes) -> bytes:
    """With another number of samples in the 36 bits of STREAMINFO."""
    head = bytearray(data)
    head[21:26] = ((head[21] >> 4) << 36 | samples).to_bytes(5, "big")
    return bytes(head)


@pytest.mark.parametrize("samples", [0, 1, 4_096, 10 * RATE, 2**36 - 1])
def test_flac_with_another_length(tmp_path: Path, samples: int, caplog: pytest.LogCaptureFixture) -> None:
    flac, path = encoded(NOISE, "FLAC"), tmp_path / "a.flac"
    path.write_bytes(flac_with(samples, flac))
    decode(path)
    assert len(caplog.records) == bool(samples)
    check(path, own(flac))


def test_flac_that_was_cut_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flac, path = encoded(NOISE, "FLAC"), tmp_path / "a.flac"
    path.write_bytes(flac[: len(flac) // 2])
    found = decode(path)[0]
    assert len(found) > RATE
    np.testing.assert_array_equal(found, own(flac)[: len(found)])
    assert duration_s(path) == len(found) / RATE
    assert "its header says 3.000 s, but it holds 1." in caplog.text
    caplog.clear()
    path.write_bytes(flac[:40_000] + bytes(100) + flac[40_100:])  # libsndfile stops at the damage
    found = decode(path)[0]
    np.testing.assert_array_equal(found, own(flac)[: len(found)])
    assert len(found) >= RATE
    assert "its header says 3.000 s, but it holds 1." in caplog.text


def test_flac_of_ffmpeg_on_a_pipe_and_in_segments(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.tile(NOISE, 4), RATE)
    piped = tmp_path / "piped.flac"
    piped.write_bytes(ffmpeg("-i", tmp_path / "a.wav", "-f", "flac", "-"))
    check(piped, own((tmp_path / "a.wav").read_bytes()))
    ffmpeg("-i", tmp_path / "a.wav", "-c:a", "flac", "-f", "segment", "-segment_time", "5", tmp_path / "s%d.flac")
    parts = sorted(tmp_path.glob("s*.flac"))
    assert len(parts) == 3
    for part in parts:
        check(part, by_ffmpeg(part))
    np.testing.assert_array_equal(
        np.concatenate([decode(part)[0] for part in parts]), own((tmp_path / "a.wav").read_bytes())
    )


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("mp3_vbr_no_header.mp3", 20.036),
        ("mp3_cbr_piped.mp3", 20.036),
        ("chained.opus", 8.007),
        ("joined.mp3", 8.073),
        ("flac_no_length.flac", 4.0),
        ("flac_last_segment.flac", 3.909),
        ("wav_size_zero.wav", 4.0),
        ("wav_two_data_chunks.wav", 4.0),
        ("mp3_in_wav.wav", 4.104),
    ],
)
def test_the_shared_files(shared: Path, name: str, seconds: float) -> None:
    path = shared / "cases" / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    wave, rate_hz = decode(path)
    assert len(wave) / rate_hz == pytest.approx(seconds, abs=0.01)
    assert duration_s(path) == len(wave) / rate_hz
    if name.startswith("wav_"):
        np.testing.assert_array_equal(wave, decode(shared / "cases" / "base.wav")[0])


def test_too_many_parts_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_SOUNDS", 10)
    (tmp_path / "a.wav").write_bytes(wav([FMT, *[(b"data", DATA[:100], None)] * 20]))
    with pytest.raises(AudioError, match="parts"):
        decode(tmp_path / "a.wav")
    (tmp_path / "a.ogg").write_bytes(encoded(NOISE[:2_000], "OGG", "VORBIS") * 20)
    with pytest.raises(AudioError, match="parts"):
        decode(tmp_path / "a.ogg")


def test_damaged_mp3_prints_nothing_from_c(tmp_path: Path) -> None:
    """mpg123 writes to file descriptor 2 from C, which `capsys` does not see."""
    data = bytearray(encoded(NOISE, "MP3"))
    rng = np.random.default_rng(0)
    for i in rng.integers(500, len(data), 200):
        data[i] = int(rng.integers(256))
    (tmp_path / "a.mp3").write_bytes(data)
    (tmp_path / "b.mp3").write_bytes(data[: len(data) // 2] + data[len(data) // 2 + 700 :])
    code = (
        "import sys; from pathlib import Path; from ced_edge.audio.read import decode, duration_s\n"
        "for name in sys.argv[1:]:\n"
        "    print(len(decode(Path(name))[0]), duration_s(Path(name)))\n"
        "print('still here', file=sys.stderr)"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "a.mp3"), str(tmp_path / "b.mp3")]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1], check=True)
    notes = [line for line in done.stderr.splitlines() if "its header says" not in line]
    assert notes == ["still here"]
