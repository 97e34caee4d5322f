"""Encoded files on a pipe are recognised by their first bytes. Raw samples are not taken for a file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ced_edge.arrays import Float32
from ced_edge.audio.containers import encoded_kind
from ced_edge.audio.mpeg import adts_frame, mpeg_frame

HEAD = 4_096
NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, 44_100).astype(np.float32)


def encode(format: str, subtype: str | None = None, wave: Float32 = NOISE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 48_000 if subtype == "OPUS" else 44_100, format=format, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("format", "subtype", "kind"),
    [
        ("WAV", None, "WAV"),
        ("RF64", None, "WAV"),
        ("W64", None, "W64"),
        ("AIFF", None, "AIFF"),
        ("AU", None, "AU"),
        ("CAF", None, "CAF"),
        ("FLAC", None, "FLAC"),
        ("OGG", "VORBIS", "Ogg"),
        ("OGG", "OPUS", "Ogg"),
        ("MP3", None, "MP3"),
        ("NIST", None, "NIST SPHERE"),
    ],
)
def test_files_of_libsndfile(format: str, subtype: str | None, kind: str) -> None:
    assert encoded_kind(encode(format, subtype)[:HEAD]) == kind


@pytest.mark.parametrize(
    ("suffix", "codec", "kind"),
    [
        ("m4a", "aac", "MP4"),
        ("webm", "libopus", "WebM/Matroska"),
        ("mkv", "aac", "WebM/Matroska"),
        ("aac", "aac", "AAC (ADTS)"),
        ("amr", "libopencore_amrnb", "AMR"),
        ("ts", "aac", "MPEG-TS"),
        ("flv", "aac", "FLV"),
        ("wma", "wmav2", "WMA/ASF"),
        ("tta", "tta", "TTA"),
        ("wv", "wavpack", "WavPack"),
        ("mp2", "mp2", "MP3"),
    ],
)
def test_files_of_ffmpeg(tmp_path: Path, suffix: str, codec: str, kind: str) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    path, rate_hz = tmp_path / f"a.{suffix}", {"amr": 8_000, "webm": 48_000}.get(suffix, 44_100)
    with av.open(str(path), "w", format="mpegts" if suffix == "ts" else None) as container:
        sound = container.add_stream(codec, rate=rate_hz, layout="mono")
        if suffix == "wma":
            sound.bit_rate = 96_000
        frame = av.AudioFrame.from_ndarray(NOISE[None], format="fltp", layout="mono")
        frame.sample_rate = rate_hz
        for part in av.AudioResampler(format=sound.codec_context.format, layout="mono", rate=rate_hz).resample(frame):
            container.mux(sound.encode(part))
        container.mux(sound.encode(None))
    assert encoded_kind(path.read_bytes()[:HEAD]) == kind


def test_mp3_that_begins_in_the_middle_of_a_frame_or_with_a_tag() -> None:
    data = encode("MP3")
    assert encoded_kind(data[4_321 : 4_321 + HEAD]) == "MP3"
    assert encoded_kind(b"ID3\3\0\0\0\0\7\x76" + bytes(HEAD)) == "MP3"
    assert encoded_kind(encode("MP3", wave=np.zeros(44_100, np.float32))[:HEAD]) == "MP3"


def test_the_shared_file_for_stdin(shared: Path) -> None:
    path = shared / "cases" / "encoded_for_stdin.mp3"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    assert encoded_kind(path.read_bytes()[:HEAD]) == "MP3"


def pcm(kind: str, seed: int) -> bytes:
    rng, n, t = np.random.default_rng(seed), 8_192, np.arange(8_192)
    period = int(rng.integers(2, 500))
    amplitude = 10.0 ** rng.uniform(-4.5, 0)
    wave = {
        "silence": np.zeros(n),
        "noise": amplitude * rng.uniform(-1, 1, n),
        "rumble": amplitude * np.cumsum(rng.uniform(-1, 1, n)) / 100,
        "tone": amplitude * np.sin(2 * np.pi * (t + seed) / period),
        "square": amplitude * np.sign(np.sin(2 * np.pi * (t + 0.5) / period)),
        "period": np.resize(amplitude * rng.uniform(-1, 1, period), n),
        "offset": np.full(n, -amplitude),
    }[kind].clip(-1, 1)
    if seed % 3 == 0:
        return wave.astype("<f4").tobytes()
    if seed % 3 == 1:
        return (wave * 32_767).astype("<i2").tobytes()
    return (wave * (2**31 - 128)).astype("<i4").tobytes()


@settings(max_examples=400)
@given(
    kind=st.sampled_from(["silence", "noise", "rumble", "tone", "square", "period", "offset"]),
    seed=st.integers(0, 10_000),
)
def test_raw_samples_are_no_file(kind: str, seed: int) -> None:
    assert encoded_kind(pcm(kind, seed)[:HEAD]) is None


def test_samples_that_look_like_one_frame_header_are_no_file() -> None:
    header = b"\xff\xfb\x90\x64"  # MPEG 1, layer 3, 128 kbit/s at 44.1 kHz: 417 bytes
    assert mpeg_frame(header) == 417
    assert encoded_kind(header + bytes(HEAD)) is None
    # At 48 kHz the frame has 384 bytes: samples whose period divides that repeat the header for ever.
    assert mpeg_frame(b"\xff\xfb\x94\x64") == 384
    assert encoded_kind((b"\xff\xfb\x94\x64" + bytes(range(92))) * 60) is None


@given(st.binary(max_size=3_000))
def test_no_bytes_break_it(data: bytes) -> None:
    for head in (data, b"\xff\xfb\x90" + data, b"\xff\xf1\x50\x80\x01\x7f" + data, b"\x47" + data):
        kind = encoded_kind(head)
        assert kind is None or isinstance(kind, str)
        adts_frame(head)
