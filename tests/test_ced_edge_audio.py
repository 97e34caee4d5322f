"""Decoding against the stdlib and against sines computed by hand; every kind of broken file by its reason."""

from __future__ import annotations

import io
import itertools
import pickle
import re
import struct
import subprocess
import sys
import wave as stdlib_wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fuzz_mutations import ogg_crc
from hypothesis import given, settings
from hypothesis import strategies as st

from ced_edge.audio import read as audio
from ced_edge.audio.base import AudioError
from ced_edge.errors import InputError

FORMATS = [
    ("wav", {}),
    ("flac", {}),
    ("ogg", {"subtype": "VORBIS"}),
    ("opus", {"format": "OGG", "subtype": "OPUS"}),
    ("mp3", {}),
]


def sine(hz: float, rate_hz: int, seconds: float) -> audio.Float32:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def write_wav(path: Path, rate_hz: int = 16_000, seconds: float = 0.5) -> Path:
    soundfile.write(path, sine(440, rate_hz, seconds), rate_hz, subtype="PCM_16")
    return path


@pytest.mark.parametrize(("suffix", "options"), FORMATS)
def test_every_format_at_48_khz_stereo_comes_out_as_the_same_mono_16_khz_sine(
    tmp_path: Path, suffix: str, options: dict[str, str]
) -> None:
    path = tmp_path / f"a.{suffix}"
    left = sine(440, 48_000, 1.0)
    soundfile.write(path, np.stack([left, 0.5 * left], 1), 48_000, **options)
    wave = audio.load(path, 16_000)
    assert wave.shape == (16_000,)
    assert wave.dtype == np.float32
    middle = slice(1_000, 15_000)  # the edges ring, in the codec and in the resampler
    tolerance = 2e-4 if suffix in ("wav", "flac") else 0.02  # exact up to 16 bits and the filter; or lossy
    np.testing.assert_allclose(wave[middle], 0.75 * sine(440, 16_000, 1.0)[middle], atol=tolerance)


def test_wav_decodes_as_the_stdlib_reads_it(tmp_path: Path) -> None:
    pcm = np.random.default_rng(0).integers(-32_768, 32_768, (1_000, 2)).astype(np.int16)
    with stdlib_wave.open(str(tmp_path / "a.wav"), "wb") as f:
        f.setparams((2, 2, 22_050, 1_000, "NONE", ""))
        f.writeframes(pcm.tobytes())
    wave, rate_hz = audio.decode(tmp_path / "a.wav")
    assert rate_hz == 22_050
    np.testing.assert_array_equal(wave, pcm / np.float32(32_768))


def test_decode_and_load_take_a_stream(tmp_path: Path) -> None:
    data = write_wav(tmp_path / "a.wav").read_bytes()
    wave, rate_hz = audio.decode(io.BytesIO(data))
    assert (wave.shape, rate_hz) == ((8_000, 1), 16_000)
    np.testing.assert_array_equal(audio.load(io.BytesIO(data), 16_000), wave[:, 0])
    with pytest.raises(AudioError, match="cannot use the stream: not audio"):
        audio.load(io.BytesIO(b"no audio at all"), 16_000)


def test_resampling_removes_what_the_new_rate_cannot_hold() -> None:
    above = audio.resample(sine(10_000, 48_000, 1.0), 48_000, 16_000)
    assert np.abs(above[1_000:-1_000]).max() < 1e-4  # 10 kHz would alias to 6 kHz
    below = audio.resample(sine(5_000, 48_000, 1.0), 48_000, 16_000)
    np.testing.assert_allclose(below[1_000:-1_000], sine(5_000, 16_000, 1.0)[1_000:-1_000], atol=1e-3)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_ten_seconds_are_160000_samples_from_any_rate(rate_hz: int) -> None:
    assert audio.resample(np.zeros(10 * rate_hz, np.float32), rate_hz, 16_000).shape == (160_000,)


def test_loud_audio_is_not_clipped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 5 * sine(440, 16_000, 0.1), 16_000, subtype="FLOAT")
    assert np.abs(audio.load(tmp_path / "a.wav", 16_000)).max() == pytest.approx(1.5, abs=0.01)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 1_999), min_size=1, max_size=4, unique=True))
def test_parts_joined_are_the_whole(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    path = tmp_path_factory.mktemp("parts") / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), 8_000)
    edges = [0.0, *(cut / 1_000 for cut in sorted(cuts)), None]
    parts = [audio.load(path, 8_000, a or 0.0, b) for a, b in itertools.pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(parts), audio.load(path, 8_000))


@pytest.mark.parametrize(("suffix", "options"), FORMATS)
def test_a_part_of_a_compressed_file_is_the_same_samples(tmp_path: Path, suffix: str, options: dict[str, str]) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 3 * 48_000).astype(np.float32)
    soundfile.write(path, noise, 48_000, **options)
    whole = audio.decode(path)[0][:, 0]
    part = audio.load(path, 48_000, 1.0, 2.0)
    np.testing.assert_allclose(part, whole[48_000:96_000], atol=1e-6)  # mp3 rounds differently after a seek
    assert audio.duration_s(path) == len(whole) / 48_000


def test_a_part_may_end_after_the_file_but_not_start_there(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav")
    assert audio.load(path, 16_000, 0.25, 99.0).shape == (4_000,)
    with pytest.raises(AudioError, match="no samples"):
        audio.load(path, 16_000, 0.5)


def broken_file(folder: Path, kind: str) -> Path:
    wav = bytearray(write_wav(folder / "good.wav").read_bytes())
    path = folder / f"broken.{'mp3' if 'mp3' in kind else 'wav'}"
    if kind == "folder":
        path.mkdir()
    elif kind == "text" or kind == "text mp3":
        path.write_text("not a sound\n" * 20)
    elif kind == "0 bytes":
        path.write_bytes(b"")
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0, np.float32), 16_000)
    elif kind.startswith("rate"):
        wav[24:28] = struct.pack("<I", int(kind.split()[1]))
        path.write_bytes(wav)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such file"),
        ("folder", "not a file"),
        ("text", "not audio"),
        ("text mp3", "not audio"),
        ("0 bytes", "empty file"),
        ("no samples", "no samples"),
        ("rate 0", "bad sample rate or channel count"),
        ("rate 1", "bad sample rate or channel count"),
        ("rate 4000000000", "bad sample rate or channel count"),
    ],
)
def test_a_broken_file_is_named_with_its_reason(tmp_path: Path, kind: str, reason: str) -> None:
    path = broken_file(tmp_path, kind)
    with pytest.raises(AudioError) as caught:
        audio.load(path, 16_000)
    assert caught.value.reason == reason
    assert str(caught.value) == f"cannot use {path}: {reason}"
    assert isinstance(caught.value, InputError)


def test_the_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(AudioError("a.wav", "not audio")))
    assert (str(error), error.reason) == ("cannot use a.wav: not audio", "not audio")


def test_real_clips_have_the_length_of_their_manifest(shared: Path) -> None:
    for name in ("esc10/001_1-100032-A.ogg", "us8k/f1_101415-3-0-2.opus"):
        expected_s = 5.001 if "esc10" in name else 4.0
        assert len(audio.load(shared / "audio" / name, 16_000)) == pytest.approx(expected_s * 16_000, abs=16)


def test_the_device_side_imports_nothing_heavy() -> None:
    code = (
        "import sys, ced_edge.audio.read, ced_edge.labels, ced_edge.audio.clips; "
        "import distill.packing.pack, distill.packing.shards; "
        "print(sorted({'torch', 'scipy', 'sklearn', 'webdataset', 'pyarrow'} & set(sys.modules)))"
    )
    repository = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_vorbis_with_a_damaged_table(tmp_path: Path) -> None:
    """A seek of libsndfile in such a file is a segmentation fault: the child process must end by itself."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(24_000), 16_000, "VORBIS", format="OGG")
    data = path.read_bytes()
    second, third = [m.start() for m in re.finditer(b"OggS", data)][1:3]
    for i in range(10):  # the second page holds the tables; its checksum is made to fit
        page = bytearray(data[second:third])
        page[-200 - 100 * i] ^= 0xFF
        page[22:26] = bytes(4)
        page[22:26] = ogg_crc(bytes(page)).to_bytes(4, "little")
        (tmp_path / f"{i}.ogg").write_bytes(data[:second] + page + data[third:])
    code = (
        "import sys\nfrom pathlib import Path\nfrom ced_edge.audio import read\n"
        "for i in range(10):\n    for f in (read.duration_s, lambda path: read.load(path, 16_000, 0.5)):\n"
        "        try:\n            f(Path(sys.argv[1]) / f'{i}.ogg')\n"
        "        except read.AudioError:\n            print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert "refused" in done.stdout
