"""FFmpeg's formats: a known signal comes back at its place and length; broken files by their reason."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from ced_edge.audio import read as audio
from ced_edge.audio.base import AUDIO_SUFFIXES, MEDIA_SUFFIXES, AudioError
from ced_edge.audio.clips import Clip
from distill.packing.pieces import PackConfig, Piece, cut, encode

ROOT = Path(__file__).resolve().parents[1]
RATE = 48_000
SECONDS = 5.3217


def chirp(rate_hz: int = RATE, seconds: float = SECONDS) -> audio.Float32:
    """One that rises and never repeats, so that it fits in one place alone."""
    t = np.arange(round(rate_hz * seconds)) / rate_hz
    noise = np.random.default_rng(0).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * (200 * t + 200 * t**2)) + 0.02 * noise).astype(np.float32)


def record(
    path: Path, codec: str, wave: audio.Float32, rate_hz: int = RATE, video: bool = False, **options: str
) -> Path:
    """`wave` as a recorder writes it, perhaps below a picture."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(path), "w", format=options.pop("format", None), options=options) as container:
        picture = container.add_stream("mpeg4", rate=10) if video else None
        sound = container.add_stream(
            codec, rate=rate_hz, layout="mono", options={"aac_pns": "0"} if codec == "aac" else {}
        )
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
            for _ in range(round(10 * len(wave) / rate_hz)):
                image = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
                container.mux(picture.encode(image))
            container.mux(picture.encode(None))
        if codec == "wmav2":
            sound.bit_rate = 96_000
        cut_up = av.AudioResampler(format=sound.codec_context.format, layout="mono", rate=rate_hz)
        for i in range(0, len(wave), 4096):
            frame = av.AudioFrame.from_ndarray(wave[None, i : i + 4096], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate_hz, i
            for cut_frame in cut_up.resample(frame):
                container.mux(sound.encode(cut_frame))
        container.mux(sound.encode(None))
    return path


def lag(found: audio.Float32, expected: audio.Float32) -> int:
    """By how many samples `found` is late."""
    n = 2 * max(len(found), len(expected))
    match = np.fft.irfft(np.fft.rfft(found, n) * np.conj(np.fft.rfft(expected, n)), n)
    best = int(match.argmax())
    return best if best < n // 2 else best - n


# Suffix, codec, rate, and how late and how much longer at most, in samples: what the format does not record.
FORMATS = [
    ("m4a", "aac", 48_000, 0, 48),  # mp4 holds lengths in ms
    ("mp4", "aac", 44_100, 0, 44),
    ("3gp", "aac", 16_000, 0, 16),
    ("mov", "pcm_s16le", 48_000, 0, 0),
    ("m4a", "alac", 48_000, 0, 0),
    ("webm", "libopus", 48_000, 0, 0),
    ("mka", "flac", 44_100, 0, 0),
    ("mkv", "aac", 48_000, 0, 1_023),
    ("aac", "aac", 48_000, 1_024, 2_047),
    ("amr", "libopencore_amrnb", 8_000, 40, 199),
    ("wma", "wmav2", 44_100, -2_048, 0),  # FFmpeg leaves out what Microsoft's encoder puts first, twice its own
    ("avi", "mp3", 48_000, 1_105, 2_304),
    ("wv", "wavpack", 48_000, 0, 0),
]


@pytest.mark.parametrize(("suffix", "codec", "rate_hz", "late", "longer"), FORMATS)
def test_a_signal_comes_back_at_its_place(
    tmp_path: Path, suffix: str, codec: str, rate_hz: int, late: int, longer: int
) -> None:
    wave = chirp(rate_hz)
    path = record(tmp_path / f"a.{suffix}", codec, wave, rate_hz)
    found, found_hz = audio.decode(path)
    assert (found_hz, found.dtype, found.shape[1]) == (rate_hz, np.float32, 1)
    assert min(late, -rate_hz / 1_000) <= len(found) - len(wave) <= longer
    assert lag(found[:, 0], wave) == late
    middle = np.arange(rate_hz, 4 * rate_hz)
    assert np.corrcoef(found[middle + late, 0], wave[middle])[0, 1] > (0.9 if suffix == "amr" else 0.99)
    assert audio.duration_s(path) == pytest.approx(len(found) / rate_hz, abs=0.05)
    assert sum(len(piece) for piece, _ in audio.stream(path)) == len(found)
    np.testing.assert_array_equal(audio.load(path, 16_000), soxr.resample(found[:, 0], rate_hz, 16_000, quality="HQ"))


@pytest.mark.parametrize(("suffix", "codec", "rate_hz"), [row[:3] for row in FORMATS])
def test_parts_joined_are_the_whole(tmp_path: Path, suffix: str, codec: str, rate_hz: int) -> None:
    path = record(tmp_path / f"a.{suffix}", codec, chirp(rate_hz), rate_hz)
    whole = audio.decode(path)[0][:, 0]
    edges = [0.0, 0.7, 1.5, 2.5001, 3.99, None]
    parts = [audio.load(path, rate_hz, a or 0.0, b) for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-4)
    assert len(audio.load(path, rate_hz, 4.5, 99.0)) == len(whole) - round(4.5 * rate_hz)
    with pytest.raises(AudioError, match="no samples"):
        audio.load(path, rate_hz, 60.0)


def test_packing_cuts_a_recording_without_loss(tmp_path: Path) -> None:
    path = record(tmp_path / "a.webm", "libopus", chirp())
    config = PackConfig(rate_hz=RATE, segment_s=2.0)
    pieces: list[Piece] = cut(Clip("a", path), audio.duration_s(path), config)
    assert [piece.start_s for piece in pieces] == [0.0, 2.0, 4.0]
    assert sum(e.samples for e in encode((pieces, config))) == round(RATE * SECONDS)


def test_a_browsers_recording_has_no_length_in_its_header_and_no_index(tmp_path: Path) -> None:
    path = record(tmp_path / "a.webm", "libopus", chirp(), live="1")
    assert audio.duration_s(path) == pytest.approx(SECONDS, abs=0.01)
    whole = audio.decode(path)[0][:, 0]
    assert len(whole) == round(RATE * SECONDS)
    np.testing.assert_allclose(audio.load(path, RATE, 3.0, 4.0), whole[3 * RATE : 4 * RATE], atol=1e-5)


def test_mp4_in_fragments_as_it_is_streamed(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mp4", "aac", chirp(), movflags="frag_keyframe+delay_moov")
    assert lag(audio.decode(path)[0][:, 0], chirp()) == 0
    assert audio.duration_s(path) == pytest.approx(SECONDS, abs=0.03)


def test_the_sound_of_a_video_and_a_video_without(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mp4", "aac", chirp(), video=True)
    assert lag(audio.decode(path)[0][:, 0], chirp()) == 0
    assert audio.duration_s(path) == pytest.approx(SECONDS, abs=0.001)
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        picture: Any = container.add_stream("mpeg4", rate=10)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(picture.encode(None))
    with pytest.raises(AudioError, match=r"mute\.mp4: no sound in it$"):
        audio.decode(tmp_path / "mute.mp4")


def test_a_name_that_ffmpeg_would_take_for_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "a.m4a", "aac", chirp()).rename("http:12:30 h\udcff.m4a")
    assert len(audio.load(Path("http:12:30 h\udcff.m4a"), 16_000)) == pytest.approx(16_000 * SECONDS, abs=20)


@pytest.mark.parametrize(
    "text",
    ["not a sound\n" * 20, "#EXTM3U\nfile:///etc/passwd\n", "ffconcat version 1.0\nfile good.m4a\n", "x", "\0" * 5_000],
)
@pytest.mark.parametrize("suffix", ["m4a", "aac", "webm", "txt"])
def test_no_media_at_all(tmp_path: Path, text: str, suffix: str) -> None:
    """Playlists neither: nothing else than the file itself is ever opened."""
    record(tmp_path / "good.m4a", "aac", chirp())
    (tmp_path / f"a.{suffix}").write_text(text)
    with pytest.raises(AudioError) as caught:
        audio.decode(tmp_path / f"a.{suffix}")
    assert caught.value.reason == "not audio"


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("m4a", "alac"), ("webm", "libopus"), ("aac", "aac")])
def test_cut_and_damaged_files(tmp_path: Path, suffix: str, codec: str, capfd: pytest.CaptureFixture[str]) -> None:
    good = record(tmp_path / f"a.{suffix}", codec, chirp(), movflags="faststart").read_bytes()
    path = tmp_path / f"b.{suffix}"
    path.write_bytes(good[: len(good) // 2])
    if suffix == "aac":  # which has no header with a length: used as far as it goes, as ogg is
        assert len(audio.decode(path)[0]) == pytest.approx(RATE * SECONDS / 2, rel=0.05)
    else:
        with pytest.raises(AudioError, match="truncated or damaged"):
            audio.decode(path)
    rng = np.random.default_rng(0)
    for i in range(40):  # whatever the damage, it is sound or an AudioError
        bad = np.frombuffer(good, np.uint8).copy()
        where = rng.integers(0, len(bad) if i % 2 else 1_000, 20)
        bad[where] = rng.integers(0, 256, 20)
        path.write_bytes(bad.tobytes())
        for use in (audio.decode, audio.duration_s, lambda p: audio.load(p, 16_000, 3.0, 4.0)):
            with contextlib.suppress(AudioError):
                use(path)
    assert capfd.readouterr() == ("", "")


def test_a_recording_that_never_was_finished(tmp_path: Path) -> None:
    """Its table of contents would have come last."""
    path = record(tmp_path / "a.m4a", "aac", chirp())
    path.write_bytes(path.read_bytes()[:-3_000])
    with pytest.raises(AudioError, match="truncated or damaged"):
        audio.decode(path)


def test_without_pyav_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for name, reason in (("A.M4A", "its format needs PyAV: pip install 'ced-edge[av]'"), ("a.txt", "not audio")):
        (tmp_path / name).write_text("anything")
        with pytest.raises(AudioError) as caught:
            audio.duration_s(tmp_path / name)
        assert str(caught.value) == f"cannot use {tmp_path / name}: {reason}"
    soundfile.write(tmp_path / "b.m4a", chirp(), RATE, format="WAV")  # named wrongly, and needs no PyAV
    assert audio.duration_s(tmp_path / "b.m4a") == pytest.approx(SECONDS, abs=1e-4)


SNDFILE = [
    *[(suffix, "AIFF") for suffix in ("aif", "aifc", "aiff")],
    *[(suffix, "WAV") for suffix in ("wav", "wave", "bwf")],
    *[("au", "AU"), ("snd", "AU"), ("caf", "CAF"), ("w64", "W64"), ("rf64", "RF64"), ("sph", "NIST"), ("flac", "FLAC")],
    *[("ogg", "OGG"), ("oga", "OGG"), ("opus", "OGG"), ("mp3", "MP3"), ("mp2", "MP3")],
]


def test_every_suffix_is_one_of_the_two_libraries() -> None:
    assert {f".{suffix}" for suffix, _ in SNDFILE} == AUDIO_SUFFIXES - MEDIA_SUFFIXES


@pytest.mark.parametrize(("suffix", "format"), SNDFILE)
def test_libsndfiles_formats_need_no_pyav(
    tmp_path: Path, suffix: str, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    soundfile.write(tmp_path / f"a.{suffix}", chirp(16_000, 1.0), 16_000, format=format)
    assert len(audio.load(tmp_path / f"a.{suffix}", 16_000)) == 16_000


def test_hours_take_no_memory(tmp_path: Path) -> None:
    """The peak of a process that reads an hour, over that of one that reads a minute."""

    def peak_mb(minutes: int) -> float:
        path = record(tmp_path / f"{minutes}.mka", "flac", np.zeros(minutes * 60 * 8_000, np.float32), 8_000)
        code = (
            "import sys, resource; from pathlib import Path; from ced_edge.audio import read\n"
            "print(sum(len(w) for w, _ in read.stream(Path(sys.argv[1]))))\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        run = [sys.executable, "-c", code, str(path)]
        samples, peak = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        assert int(samples) == 60 * 8_000 * minutes
        return float(peak)

    pytest.importorskip("resource", reason="no peak memory on this system")
    assert peak_mb(60) < peak_mb(1) + 25  # decoded, it is 115 MB


def test_files_side_by_side(tmp_path: Path) -> None:
    path = record(tmp_path / "a.webm", "libopus", chirp())
    whole, found = audio.decode(path)[0], []
    threads = [threading.Thread(target=lambda: found.append(audio.decode(path)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(whole, one) for one in found)
    assert len(found) == 4
