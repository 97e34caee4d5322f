"""Read sound files with libsndfile, whatever their headers say about the length."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from ced_edge.arrays import Float32
from ced_edge.audio.base import MAX_RATE_HZ, MIN_RATE_HZ, AudioError
from ced_edge.audio.containers import Inside, sounds_in
from ced_edge.audio.mix import with_channels
from ced_edge.audio.quiet import quiet_c
from ced_edge.audio.spliced import Spliced

_BLOCK_FRAMES = 1 << 18
_UNKNOWN_FRAMES = 1 << 40  # libsndfile reports a length near 2**63 where the header has none
_SF_ERR_BAD_INFO = 24  # libsndfile: the header was read, but its rate or channel count is out of range
_SLACK_S = 0.01  # a header may differ by less than this without a notice: lossy formats have whole frames

log = logging.getLogger(__name__)


class _Forward(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is read from its beginning to its end: `read` then does not seek after each block."""

    def seekable(self) -> bool:
        return False


class Sound:
    """One or more sounds in a file that libsndfile reads, one after the other.

    The sound decides, not the header: it is decoded to its end, and a notice reports a header that is wrong. A file
    that was cut short is used up to its end. Later sounds of another rate or channel count are converted to the first
    one's.
    """

    def __init__(self, name: str, source: Path | BinaryIO, inside: list[Inside]) -> None:
        """Open the first sound. Raises soundfile.SoundFileError or TypeError on an unknown format."""
        self._name, self._source, self._inside = name, source, inside
        f = self._open(inside[0])
        # GSM in WAV cannot seek. A file of parts always can.
        self._is_seekable = inside[0].file is not None or soundfile.SoundFile.seekable(f)
        self._unused: soundfile.SoundFile | None = f  # serves the first reader: opening it again would take time
        self.rate_hz, self._channels = int(f.samplerate), int(f.channels)
        self._is_vorbis = f.subtype == "VORBIS"
        self.is_bounded = str(f.subtype).startswith(("PCM_", "ALAC_"))
        """Whether the format can hold no sample beyond 1.0, and no NaN."""
        self._frames = min(int(f.frames), inside[0].frames or _UNKNOWN_FRAMES)

    def seconds(self) -> float:
        """Length in seconds: that of the header if its last sample can be decoded, else that of the whole sound."""
        only = self._inside[0]
        if 0 < self._frames < _UNKNOWN_FRAMES and self._can_seek():
            with contextlib.suppress(soundfile.SoundFileError), self._opened(only) as f, quiet_c():
                f.seek(self._frames - 1)
                if len(_read(f, 2)) == 1:
                    return self._frames / self.rate_hz
        return sum(map(len, self._all(0, notices=False))) / self.rate_hz

    def _can_seek(self) -> bool:
        """Whether positions are sure: only in one sound whose length is known."""
        if len(self._inside) > 1 or self._inside[0].forward or not self._is_seekable:
            return False
        if not self._is_vorbis:
            return True
        # Where no sample of a damaged file can be decoded, a seek ends the process with a segmentation fault.
        with quiet_c(), self._open(self._inside[0]) as f:
            return len(f.read(1)) == 1

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Float32]:
        """Samples [start, stop) in blocks of (frames, channels). `stop` None is the end.

        Raises AudioError if there are none.
        """
        none, place = True, 0
        # Without a seek, all that is in front is decoded.
        if 0 < start < self._frames and self._can_seek():
            # A frame of MP3 may need bytes of the frames in front of it. Only the header's table finds those.
            place = max(0, start - (self.rate_hz if self._inside[0].frames else 0))
        for block in self._all(place, notices=True, is_part=start > 0):
            part = block[max(0, start - place) : None if stop is None else max(0, stop - place)]
            place += len(block)
            if len(part):
                none = False
                yield part
            if stop is not None and place >= stop:
                break  # the end of the file was not reached, so nothing is known about its header
        if none:
            raise AudioError(self._name, "no samples")

    def _all(self, place: int, notices: bool, is_part: bool = False) -> Iterator[Float32]:
        """All samples from `place` on, which is in the first sound. With `notices`, wrong headers are reported.

        A later part of a file that is read in parts does not repeat what the first one has reported.
        """
        if len(self._inside) > 1 and notices and not is_part:
            log.info("%s: holds %d sounds, one after the other: all are used", self._name, len(self._inside))
        for i, one in enumerate(self._inside):
            frames, rate_hz, place = place, self.rate_hz, 0
            try:
                with self._opened(one) as f:
                    rate_hz = int(f.samplerate)
                    for block in self._fitting(f, self._decoded(one, f, frames), notices and not is_part):
                        yield block[0]
                        frames += block[1]
            except soundfile.SoundFileError:
                if i == 0:
                    raise
                if notices:
                    log.warning("%s: sound %d of %d cannot be read", self._name, i + 1, len(self._inside))
                continue
            if notices and one.claimed is not None and abs(frames - one.claimed) > _SLACK_S * rate_hz:
                log.warning(
                    "%s: its header says %.3f s, but it holds %.3f s: these are used",
                    self._name,
                    one.claimed / rate_hz,
                    frames / rate_hz,
                )

    def _fitting(
        self, f: soundfile.SoundFile, blocks: Iterator[Float32], notices: bool
    ) -> Iterator[tuple[Float32, int]]:
        """Each block at the rate and with the channels of the first sound, and its number of samples before that."""
        rate_hz = int(f.samplerate)
        if (rate_hz, f.channels) == (self.rate_hz, self._channels):
            yield from ((block, len(block)) for block in blocks)
            return
        if notices:
            log.info(
                "%s: changes from %d Hz (channels: %d) to %d Hz (channels: %d), and is converted back",
                *(self._name, self.rate_hz, self._channels, rate_hz, f.channels),
            )
        if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
            raise AudioError(self._name, "bad sample rate or channel count")
        resampler = None
        if rate_hz != self.rate_hz:
            resampler = soxr.ResampleStream(rate_hz, self.rate_hz, self._channels, "float32", quality="HQ")
        for block in blocks:
            wave = with_channels(block, self._channels)
            yield wave if resampler is None else _two_d(resampler.resample_chunk(wave), self._channels), len(block)
        if resampler is not None:
            rest = resampler.resample_chunk(np.empty((0, self._channels), np.float32), last=True)
            yield _two_d(rest, self._channels), 0

    def _decoded(self, one: Inside, f: soundfile.SoundFile, place: int) -> Iterator[Float32]:
        """The samples of one sound from `place` on, in blocks, until the decoder gives no more."""
        stop = min(int(f.frames), one.frames or _UNKNOWN_FRAMES)
        with quiet_c():
            if place:
                f.seek(place)
        while place < stop:  # in blocks: a wrong length in the header must not allocate memory
            try:
                with quiet_c():
                    block = _read(f, min(stop - place, _BLOCK_FRAMES))
            except soundfile.SoundFileError:
                yield from self._behind_damage(one, place, stop)
                return
            if len(block) == 0:
                return
            yield block
            place += len(block)

    def _behind_damage(self, one: Inside, place: int, stop: int) -> Iterator[Float32]:
        """What can still be decoded from `place` on, where a block raised an error."""
        with self._opened(one, forward=True) as f:
            skipped, failed = 0, False
            while skipped < stop and not failed:
                # NaN marks what was not decoded: `read` does not return the samples in front of an error.
                block = np.full((min(stop - skipped, _BLOCK_FRAMES), f.channels), np.nan, np.float32)
                try:
                    with quiet_c():
                        block = f.read(out=block)
                except soundfile.SoundFileError:
                    failed = True
                    block = block[: int(np.isnan(np.append(block[:, 0], np.nan)).argmax())]
                if len(block) == 0:
                    break
                skipped += len(block)
                if skipped > place:
                    yield block[max(0, place - skipped + len(block)) :]
        if skipped == 0:
            raise AudioError(self._name, "truncated or damaged")

    @contextlib.contextmanager
    def _opened(self, one: Inside, forward: bool = False) -> Iterator[soundfile.SoundFile]:
        f = None
        if one is self._inside[0] and not forward:
            f, self._unused = self._unused, None
        f = f or self._open(one, forward)
        try:
            yield f
        finally:
            with quiet_c():
                f.close()

    def _open(self, one: Inside, forward: bool = False) -> soundfile.SoundFile:
        source: Any = one.file or self._source
        if isinstance(source, Path):
            # As bytes: a file name may not be valid text in the system's encoding.
            source = os.fsencode(source) if os.name == "posix" else source
        else:
            if one.file is None:  # a seek in front of the beginning is an exception in files of Python
                source = Spliced(source, [(0, source.seek(0, os.SEEK_END))])
            source.seek(0)
        kind = _Forward if forward or one.is_lossless or one.file is not None else soundfile.SoundFile
        with quiet_c():
            return kind(source)

    def close(self) -> None:
        """Close the first sound, if nothing was read."""
        if self._unused is not None:
            with quiet_c():
                self._unused.close()


def _read(f: soundfile.SoundFile, frames: int) -> Float32:
    """The next samples (n, channels), at most `frames`: none at the end. Raises soundfile.SoundFileError."""
    # In a damaged mp3 file, a seek may lead behind the end. soundfile would then allocate a negative size.
    if f.seekable() and f.tell() > f.frames:
        return np.empty((0, f.channels), np.float32)
    return np.asarray(f.read(frames, dtype="float32", always_2d=True))


def opened(name: str, source: Path | BinaryIO, file: BinaryIO) -> Sound | None:
    """The sound of a seekable file, or None if libsndfile does not know its format. Raises AudioError.

    `file` is the open file, and `source` its path, or the file once more.
    """
    try:
        sound = Sound(name, source, sounds_in(file))
    except ValueError as e:
        raise AudioError(name, str(e)) from e
    except (soundfile.SoundFileError, TypeError) as e:
        # soundfile raises TypeError for suffixes of audio without a header, such as .raw
        if getattr(e, "code", None) == _SF_ERR_BAD_INFO:
            raise AudioError(name, "bad sample rate or channel count") from e
        return None
    if not MIN_RATE_HZ <= sound.rate_hz <= MAX_RATE_HZ:
        sound.close()
        raise AudioError(name, "bad sample rate or channel count")
    return sound


def _two_d(wave: Float32, channels: int) -> Float32:
    return np.asarray(wave, np.float32).reshape(-1, channels)
