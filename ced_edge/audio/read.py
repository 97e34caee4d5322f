"""Any audio file -> float32 samples in [-1, 1] at the requested rate.

libsndfile reads most formats. FFmpeg (ffmpeg.py) reads the others, if they are files with a name. A wav or ogg file
that was cut short is used up to its end: programs that record often write a wrong length on purpose.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import soundfile
import soxr

from ced_edge.arrays import Float32
from ced_edge.audio.base import MAX_RATE_HZ, MIN_RATE_HZ, AudioError

if TYPE_CHECKING:
    from ced_edge.audio.ffmpeg import Media


_BLOCK_FRAMES = 1 << 18
_UNKNOWN_FRAMES = 1 << 40  # libsndfile reports a length near 2**63 where the header has none
_MAX_FRAMES_PER_BYTE = 1 << 16  # a FLAC frame has at least 10 bytes and at most 65,535 samples per channel
_SF_ERR_BAD_INFO = 24  # libsndfile: the header was read, but its rate or channel count is out of range


def _name(source: Path | BinaryIO) -> str:
    return str(source) if isinstance(source, Path) else str(getattr(source, "name", "the stream"))


class _Sound:
    """A sound in a file that libsndfile reads."""

    def __init__(self, name: str, f: soundfile.SoundFile) -> None:
        self._name, self._f = name, f
        self.rate_hz = int(f.samplerate)

    def seconds(self) -> float:
        """Length in seconds, from the header."""
        return float(self._f.frames / self._f.samplerate)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Float32]:
        """Samples [start, stop) in blocks of (frames, channels). Raises AudioError if the file ends before that."""
        stop = self._f.frames if stop is None else min(stop, self._f.frames)
        if start >= stop:
            raise AudioError(self._name, "no samples")
        if start > 0:
            self._f.seek(start)
        while start < stop:  # in blocks: a wrong length in the header must not allocate memory
            block = self._f.read(min(stop - start, _BLOCK_FRAMES), dtype="float32", always_2d=True)
            if len(block) == 0:
                raise AudioError(self._name, "truncated or damaged")
            yield block
            start += len(block)


def _sound_file(source: Path | BinaryIO) -> soundfile.SoundFile | None:
    """An open sound file, or None if libsndfile does not know the format. Raises AudioError."""
    name = _name(source)
    try:
        if isinstance(source, Path) and not source.exists():
            raise AudioError(name, "no such file")
        if isinstance(source, Path) and not source.is_file():
            raise AudioError(name, "not a file")
        if isinstance(source, Path) and source.stat().st_size == 0:
            raise AudioError(name, "empty file")
        if isinstance(source, Path):
            os.close(os.open(source, os.O_RDONLY))  # raises the true reason, which libsndfile hides
        # As bytes: a file name may not be valid text in the system's encoding.
        return soundfile.SoundFile(os.fsencode(source) if isinstance(source, Path) and os.name == "posix" else source)
    except OSError as e:
        raise AudioError(name, f"unreadable ({e.strerror})") from e
    except (soundfile.SoundFileError, TypeError) as e:
        # soundfile raises TypeError for suffixes of audio without a header, such as .raw
        if getattr(e, "code", None) == _SF_ERR_BAD_INFO:
            raise AudioError(name, "bad sample rate or channel count") from e
        return None


@contextlib.contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[_Sound | Media]:
    """An open sound whose header was checked. Every failure, also during reading, becomes an AudioError."""
    name = _name(source)
    f = _sound_file(source)
    try:
        if f is None:
            if not isinstance(source, Path):
                raise AudioError(name, "not audio")
            from ced_edge.audio import ffmpeg

            with ffmpeg.opened(source) as sound:
                yield sound
            return
        with f:
            if not MIN_RATE_HZ <= f.samplerate <= MAX_RATE_HZ:
                raise AudioError(name, "bad sample rate or channel count")
            if f.frames >= _UNKNOWN_FRAMES:
                raise AudioError(name, "no length in its header, encode it again")
            if isinstance(source, Path) and f.frames > source.stat().st_size * _MAX_FRAMES_PER_BYTE:
                raise AudioError(name, "truncated or damaged")
            yield _Sound(name, f)
    except (OSError, soundfile.SoundFileError) as e:
        raise AudioError(name, "truncated or damaged") from e


def _joined(blocks: Iterator[Float32]) -> Float32:
    parts = list(blocks)
    return np.concatenate(parts) if len(parts) > 1 else parts[0]  # one block needs no copy


def duration_s(source: Path) -> float:
    """Length in seconds: from the header or, where it gives none, from all packets of the file. Raises AudioError."""
    with _opened(source) as sound:
        return sound.seconds()


def stream(source: Path | BinaryIO) -> Generator[tuple[Float32, int], None, None]:
    """A file of any length, in pieces: ((frames, channels) float32, rate in Hz). Raises AudioError."""
    with _opened(source) as sound:
        for block in sound.blocks():
            yield block, sound.rate_hz


def decode(source: Path | BinaryIO) -> tuple[Float32, int]:
    """A whole file -> ((frames, channels) float32, rate in Hz). Raises AudioError."""
    with _opened(source) as sound:
        return _joined(sound.blocks()), sound.rate_hz


def load(source: Path | BinaryIO, rate_hz: int, start_s: float = 0.0, stop_s: float | None = None) -> Float32:
    """File -> (samples,) mono float32 at `rate_hz`: the mean of the channels, resampled, not clipped.

    With `start_s` and `stop_s` only that part is decoded. `stop_s` may be later than the end. Raises AudioError.
    """
    with _opened(source) as sound:
        rate = sound.rate_hz
        wave = _joined(sound.blocks(round(start_s * rate), None if stop_s is None else round(stop_s * rate)))
    mono = wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1, dtype=np.float32)
    return resample(mono, rate, rate_hz)


def resample(wave: Float32, from_hz: int, to_hz: int) -> Float32:
    """(samples,) at `from_hz` -> (samples,) at `to_hz`, band-limited (soxr, high quality)."""
    if from_hz == to_hz:
        return np.ascontiguousarray(wave, np.float32)
    return np.asarray(soxr.resample(wave, from_hz, to_hz, quality="HQ"), np.float32)
