"""Any audio file -> float32 samples in [-1, 1] at the requested rate.

libsndfile reads most formats (sndfile.py), FFmpeg the others (ffmpeg.py). The length of a file is what is decoded,
never what its header says: a file that was cut short is used up to its end, and a notice reports a wrong header.
"""

from __future__ import annotations

import contextlib
import stat
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import soundfile
import soxr

from ced_edge.arrays import Float32
from ced_edge.audio import sndfile
from ced_edge.audio.base import AudioError
from ced_edge.audio.mix import Mixer, check_samples
from ced_edge.errors import InputError

if TYPE_CHECKING:
    from ced_edge.audio.ffmpeg import Media

MAX_PIPE_BYTES = 4 << 30
"""Most bytes that are read from a pipe: they are kept on the disk, because decoders go back and forth in a file."""


_APPLE_DOUBLE = b"\0\5\x16\7"
"""macOS keeps a file's icon and tags in a file `._NAME` beside it, on disks of other systems."""


def _name(source: Path | BinaryIO) -> str:
    return str(source) if isinstance(source, Path) else str(getattr(source, "name", "the stream"))


def _is_pipe(source: Path | BinaryIO) -> bool:
    """Whether it can be read once only: a named pipe, `/dev/fd/N` of a shell's `<(command)`, or a stream.

    Raises AudioError if it is no file either.
    """
    if not isinstance(source, Path):
        return not source.seekable()
    try:
        info = source.stat()
    except (FileNotFoundError, NotADirectoryError) as e:
        raise AudioError(str(source), "no such file") from e
    if stat.S_ISFIFO(info.st_mode):
        return True
    if not stat.S_ISREG(info.st_mode):
        raise AudioError(str(source), "not a file")
    if info.st_size == 0:
        raise AudioError(str(source), "empty file")
    return False


@contextlib.contextmanager
def _spooled(f: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """The bytes of a pipe in a temporary file without a name, which can seek."""
    with tempfile.TemporaryFile() as spool:
        size = 0
        while block := f.read(1 << 20):
            size += len(block)
            if size > MAX_PIPE_BYTES:
                limit = f"more than {MAX_PIPE_BYTES >> 30} GB came through the pipe: write it to a file first"
                raise AudioError(name, limit)
            spool.write(block)
        if not size:
            raise AudioError(name, "no data came through the pipe")
        yield spool


@contextlib.contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[sndfile.Sound | Media]:
    """An open sound. Every failure, also during reading, becomes an AudioError."""
    name = _name(source)
    try:
        with contextlib.ExitStack() as stack:
            is_pipe, is_path = _is_pipe(source), isinstance(source, Path)
            f: BinaryIO = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
            if is_pipe:
                f = stack.enter_context(_spooled(f, name))
            sound: sndfile.Sound | Media | None = sndfile.opened(name, source if is_path and not is_pipe else f, f)
            if sound is None:
                f.seek(0)
                if f.read(4) == _APPLE_DOUBLE:
                    raise AudioError(name, "an AppleDouble file of macOS, without audio: take the file without `._`")
                from ced_edge.audio import ffmpeg

                suffix = source.suffix if isinstance(source, Path) else ""
                sound = stack.enter_context(ffmpeg.opened(name, f, suffix))
            else:
                stack.callback(sound.close)
            yield sound
    except OSError as e:
        raise AudioError(name, f"unreadable ({e.strerror})") from e
    except soundfile.SoundFileError as e:
        raise AudioError(name, "truncated or damaged") from e


def duration_s(source: Path | BinaryIO, exact: bool = True) -> float:
    """Length in seconds: that of the header only if it was found to be right. Raises AudioError.

    With `exact` False it may be some tens of milliseconds off, and is found without decoding a video's sound.
    """
    with _opened(source) as sound:
        return sound.seconds() if exact or isinstance(sound, sndfile.Sound) else sound.seconds(exact=False)


def stream(source: Path | BinaryIO) -> Generator[tuple[Float32, int], None, None]:
    """A file of any length, in pieces: ((frames, channels) float32, rate in Hz). Raises AudioError."""
    with _opened(source) as sound:
        for block in sound.blocks():
            yield block, sound.rate_hz


def decode(source: Path | BinaryIO) -> tuple[Float32, int]:
    """A whole file -> ((frames, channels) float32, rate in Hz). Raises AudioError."""
    with _opened(source) as sound:
        return _joined(list(sound.blocks())), sound.rate_hz


def load(source: Path | str | BinaryIO, rate_hz: int, start_s: float = 0.0, stop_s: float | None = None) -> Float32:
    """File -> (samples,) mono float32 at `rate_hz`, resampled, not clipped.

    mix.py has the rules for several channels and for the largest sample. With `start_s` and `stop_s` only that part is
    decoded. `stop_s` may be later than the end. Raises AudioError.
    """
    source = Path(source) if isinstance(source, str) else source
    name, mono = _name(source), list[Float32]()
    mixer: Mixer | None = None
    with _opened(source) as sound:
        rate = sound.rate_hz
        resampler: soxr.ResampleStream | None = None
        start = done = round(start_s * rate)
        for block in sound.blocks(start, None if stop_s is None else round(stop_s * rate)):
            try:
                if not sound.is_bounded:
                    check_samples(block, done, rate)
            except InputError as e:
                raise AudioError(name, f"unusable samples: {e}") from e
            if mono and resampler is None and rate != rate_hz:
                # A long file block by block: this gives the bits of `resample`, and needs less memory.
                resampler = soxr.ResampleStream(rate, rate_hz, 1, "float32", quality="HQ")
                mono = [resampler.resample_chunk(_joined(mono))]
            done += len(block)
            # A part does not repeat the notice of the file's beginning.
            mixer = mixer or Mixer(block.shape[1], rate, None if start else name)
            mixed = mixer.push(block)
            mono.append(mixed if resampler is None else resampler.resample_chunk(mixed))
    rest = np.empty(0, np.float32) if mixer is None else mixer.finish()
    if resampler is not None:
        return _joined([*mono, resampler.resample_chunk(rest, last=True)])
    return resample(_joined([*mono, rest] if len(rest) else mono), rate, rate_hz)


def resample(wave: Float32, from_hz: int, to_hz: int) -> Float32:
    """(samples,) at `from_hz` -> (samples,) at `to_hz`, band-limited (soxr, high quality)."""
    if from_hz == to_hz:
        return np.ascontiguousarray(wave, np.float32)
    return np.asarray(soxr.resample(wave, from_hz, to_hz, quality="HQ"), np.float32)


def _joined(parts: list[Float32]) -> Float32:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]  # one block needs no copy
